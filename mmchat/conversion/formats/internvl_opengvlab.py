"""InternVL as OpenGVLab publishes it, with remote code, which is not run: `InternVLChatModel`.

Source of names, defaults and computation: OpenGVLab/InternVL, internvl_chat/internvl/model/internvl_chat/
configuration_internvl_chat.py and modeling_internvl_chat.py; of the prompts: internvl_chat/internvl/conversation.py.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.conversion import internlm2
from mmchat.conversion.formats.base import ImportedAssistant, open_tokenizer, require_config, tower_state
from mmchat.conversion.formats.internvl import PROJECTOR, SLOTS, refuse_other_projector
from mmchat.conversion.key_map import KeyMap
from mmchat.errors import UserError
from mmchat.model.assembly import build_config
from mmchat.vision import TowerConfig, with_fit
from mmchat.vision.checkpoint_formats.internvit import OpenGVLab
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.transforms.tiling import Tiling

LANGUAGE_TYPES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
"""Architecture of the language model -> `model_type` of transformers with the same keys."""
INTERNLM2 = "InternLM2ForCausalLM"
# ruff: noqa: RUF001  (commas of Chinese)
_OLD_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_NEW_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
TEMPLATES = {
    "Hermes-2": ("mpt", _OLD_SYSTEM),
    "internlm2-chat": ("mpt", _OLD_SYSTEM),
    "internvl2_5": ("chatml", _NEW_SYSTEM),
}
"""`template` of the config -> template and system message here."""
KEYS = KeyMap(
    ("mlp1.0.*", "projectors.0.1.*"),
    ("mlp1.1.*", "projectors.0.2.*"),
    ("mlp1.3.*", "projectors.0.4.*"),
    ("language_model.*", "language_model.*"),
)
_TOWER = "vision_model."


class InternVLOpenGVLab:
    name = "internvl-opengvlab"
    description = "OpenGVLab's InternVLChatModel (vision_model.*, mlp1.* and language_model.*)"

    def recognises(self, source: WeightFiles) -> bool:
        return all(any(key.startswith(part) for key in source.shapes) for part in (_TOWER, "mlp1.", "language_model."))

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        values = require_config(source, "vision_config", "llm_config", "template")
        refuse_other_projector(values.get("downsample_ratio", 0.5), "gelu", source)
        _refuse_transposed(values.get("ps_version", "v1"), source)
        template, system = _template(values["template"], source)
        language = language_config(values["llm_config"], source)
        tower = OpenGVLab().open(source, weights=True)
        others = {key: tensor for key, tensor in source.tensors().items() if not key.startswith(_TOWER)}
        if _architecture(values["llm_config"]) == INTERNLM2:
            others = internlm2.language_state(others, language)
        opened = open_tokenizer(source, tokenizer)
        for token in SLOTS.tokens:
            safe_tokenizer_for(opened).require(token)
        config = build_config(
            language, [tower_config(tower.config, values)], [PROJECTOR], opened, template, SLOTS, system
        )
        return ImportedAssistant(config, opened, KEYS.import_state(others) | tower_state(0, tower.state))


def language_config(values: dict[str, Any], source: WeightFiles) -> PreTrainedConfig:
    """The language model's config.

    Raises:
        UserError: Its architecture, or its way to number positions, has no counterpart.
    """
    architecture = _architecture(values)
    if architecture != INTERNLM2 and architecture not in LANGUAGE_TYPES:
        known = ", ".join([*LANGUAGE_TYPES, INTERNLM2])
        raise UserError(
            f"the language model in {source.path} is a {architecture}, expected one of {known}; open transformers' "
            "layout of this InternVL, if there is one"
        )
    if values.get("rope_pos_id_version") not in (None, "default"):
        raise UserError(
            f"the language model in {source.path} numbers image tokens in fractions (rope_pos_id_version "
            f"{values['rope_pos_id_version']}, V2PE), and here every token has one position"
        )
    model_type = LANGUAGE_TYPES.get(architecture, "llama")
    own = AutoConfig.for_model(model_type).to_dict().keys() - PreTrainedConfig().to_dict().keys()
    own |= {"rope_theta", "rope_scaling", "tie_word_embeddings", "bias"} - {"rope_parameters"}
    kept = {key: value for key, value in values.items() if key in own}
    if architecture == INTERNLM2:
        return internlm2.language_config({"bias": True, **kept})
    return AutoConfig.for_model(model_type, **kept)


def tower_config(tower: TowerConfig, values: dict[str, Any]) -> TowerConfig:
    """The tower with the tiles that the config states: `InternVLChatConfig`'s own defaults, not those of its demo."""
    if not values.get("dynamic_image_size", False):
        return tower
    tiling = Tiling(
        values.get("min_dynamic_patch", 1), values.get("max_dynamic_patch", 6), values.get("use_thumbnail", False)
    )
    return with_fit(tower, "tiles", tiling)


def _architecture(language: dict[str, Any]) -> str:
    return (language.get("architectures") or ["LlamaForCausalLM"])[0]


def _template(name: str, source: WeightFiles) -> tuple[str, str]:
    if name not in TEMPLATES:
        raise UserError(
            f"{source.path} was trained with the conversation template {name!r}, which has no counterpart; known: "
            f"{', '.join(TEMPLATES)}"
        )
    return TEMPLATES[name]


def _refuse_transposed(version: str, source: WeightFiles) -> None:
    """Pixel shuffle v1, the default of the config class, leaves rows and columns of slots exchanged."""
    if version != "v2":
        raise UserError(
            f"{source.path} has ps_version {version!r}: its slots are in column order, and here they are in reading "
            "order (v2); open a later release"
        )
