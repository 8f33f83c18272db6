"""Vary with OPT-125M: trains the vision vocabulary (Wei et al. 2023, arXiv:2312.06109).

The original class is `varyOPTForCausalLM` (Ucas-HaoranWei/Vary, vary/model/). Vary-tiny is this model.
"""

from typing import Any

from transformers import OPTConfig, PreTrainedConfig

from mmchat.conversation import DEFAULT_SLOTS
from mmchat.conversion.formats.base import (
    ImportedAssistant,
    check_token_ids,
    open_tokenizer,
    require_config,
    tower_state,
)
from mmchat.model.assembly import build_config
from mmchat.vision.checkpoint_formats.base import rename_key
from mmchat.vision.checkpoint_formats.vary import Vary, encoder_prefix
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles

QWEN_TOWER = "transformer.vision_tower_high."
SLOT_ID_KEYS = {
    DEFAULT_SLOTS.pad: "im_patch_token",
    DEFAULT_SLOTS.start: "im_start_token",
    DEFAULT_SLOTS.end: "im_end_token",
}
"""Slot token -> key of its id in the config, in the order in which `initialize_vision_tokenizer` adds the tokens."""

_PREFIXES = {
    "model.decoder.": "language_model.model.decoder.",
    "opt_model.": "language_model.",
    "lm_head.": "language_model.lm_head.",
    "model.mm_projector.": "projectors.0.",
    "opt_proj.": "projectors.0.",
}
"""Foreign key prefix -> ours, for all parts except the tower. Each release has some of them."""


class VaryOPT:
    name = "vary-opt"
    description = "Vary's OPT (the vocabulary's encoder beside model.decoder.* or opt_model.*)"

    def recognises(self, source: WeightFiles) -> bool:
        return encoder_prefix(source) not in (None, "", QWEN_TOWER)

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        values = require_config(source, "num_attention_heads", "ffn_dim")
        language = OPTConfig(**_select_keys(values, OPTConfig))
        prefix, tower = encoder_prefix(source), Vary().open(source, weights=True)
        others = {key: tensor for key, tensor in source.tensors().items() if not key.startswith(prefix)}
        state = {rename_key(key, _PREFIXES, {}): tensor for key, tensor in others.items()}
        opened = open_tokenizer(source, tokenizer)
        opened.add_tokens(list(SLOT_ID_KEYS), special_tokens=True)
        check_token_ids(opened, slot_ids(values), source)
        config = build_config(language, [tower.config], ["linear"], opened, "vary_opt")
        return ImportedAssistant(config, opened, state | tower_state(0, tower.state))


def slot_ids(values: dict[str, Any]) -> dict[str, int]:
    """Slot token -> id, as far as Vary's config names them."""
    return {token: values[key] for token, key in SLOT_ID_KEYS.items() if key in values}


def _select_keys(values: dict[str, Any], config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The keys of `values` that only this kind of language model has."""
    keys = config_class().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    return {key: value for key, value in values.items() if key in keys}
