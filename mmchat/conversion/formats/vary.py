"""Vary's assistants (Wei et al. 2023, arXiv:2312.06109; Ucas-HaoranWei/Vary, vary/model/): `varyOPTForCausalLM`, which
grows the vision vocabulary, and `varyQwenForCausalLM`, which reads with it beside CLIP (Vary-base, Vary-toy)."""

from math import isqrt
from typing import Any

import torch
from transformers import OPTConfig, PreTrainedConfig

from mmchat.conversation import DEFAULT_SLOTS
from mmchat.conversion.formats import vary_qwen
from mmchat.conversion.formats.base import Assistant, check_ids, open_words, stated
from mmchat.errors import UserError
from mmchat.model.assembly import assistant_config
from mmchat.vision import TowerConfig
from mmchat.vision.checkpoint_formats import openai
from mmchat.vision.checkpoint_formats.base import in_backbone
from mmchat.vision.checkpoint_formats.vary import Vary, place_of
from mmchat.vision.checkpoint_formats.weight_files import Source

QWEN_PLACE = "transformer.vision_tower_high."
CLIP_PLACE = "transformer.vision_tower.vision_model."
SLOT_KEYS = {
    DEFAULT_SLOTS.pad: "im_patch_token",
    DEFAULT_SLOTS.start: "im_start_token",
    DEFAULT_SLOTS.end: "im_end_token",
}
"""The slots' tokens, as the original's `initialize_vision_tokenizer` adds them in turn -> where its config keeps their
ids."""

_OPT = {
    "model.decoder.": "language_model.model.decoder.",
    "opt_model.": "language_model.",
    "lm_head.": "language_model.lm_head.",
    "model.mm_projector.": "projectors.0.",
    "opt_proj.": "projectors.0.",
}
"""How keys of all parts but the tower begin, there and here; each release has some of them."""
_PROJECTORS = {"transformer.mm_projector.": "projectors.0.", "transformer.mm_projector_vary.": "projectors.1."}


class VaryOPT:
    name = "Vary's OPT (the vocabulary's encoder beside model.decoder.* or opt_model.*)"

    def recognises(self, source: Source) -> bool:
        return place_of(source) not in (None, "", QWEN_PLACE)

    def open(self, source: Source, tokenizer: str | None) -> Assistant:
        values = stated(source, "num_attention_heads", "ffn_dim")
        language = OPTConfig(**_own(values, OPTConfig))
        place, tower = place_of(source), Vary().open(source, weights=True)
        rest = {key: tensor for key, tensor in source.tensors().items() if not key.startswith(place)}
        state = {openai.renamed(key, _OPT, {}): tensor for key, tensor in rest.items()}
        _refuse_untied(state, language, source)
        words = open_words(source, tokenizer)
        words.add_tokens(list(SLOT_KEYS), special_tokens=True)
        check_ids(words, _slot_ids(values), source)
        config = assistant_config(language, [tower.config], ["linear"], words, "vary_opt")
        return Assistant(config, words, state | _as_tower(0, tower.state))


class VaryQwen:
    name = "Vary's Qwen (transformer.vision_tower and transformer.vision_tower_high beside transformer.h.*)"

    def recognises(self, source: Source) -> bool:
        return place_of(source) == QWEN_PLACE

    def open(self, source: Source, tokenizer: str | None) -> Assistant:
        values = stated(source, *vary_qwen.NEEDED)
        vocabulary = Vary().open(source, weights=True)
        clip = clip_config(source, values.get("vision_select_layer", -1))
        # Older transformers saved the numbers of positions, too, which are no weights.
        seen = {key: t for key, t in source.tensors(CLIP_PLACE).items() if key != "embeddings.position_ids"}
        rest = {
            openai.renamed(key, _PROJECTORS, {}): tensor
            for key, tensor in source.tensors().items()
            if not key.startswith((QWEN_PLACE, CLIP_PLACE))
        }
        words = vary_qwen.open_words(source, tokenizer)
        check_ids(words, vary_qwen.SLOT_IDS | _slot_ids(values), source)
        towers, language = [clip, vocabulary.config], vary_qwen.language_config(values)
        config = assistant_config(language, towers, ["linear"] * 2, words, "vary_qwen")
        state = vary_qwen.language_state(rest) | _as_tower(0, in_backbone(seen)) | _as_tower(1, vocabulary.state)
        return Assistant(config, words, state)


def clip_config(source: Source, layer: int) -> TowerConfig:
    """CLIP's ViT as the shapes tell it; heads are as wide as OpenAI's. Features as `varyQwenModel.forward` takes them:
    of the layer that its config says, without the class token."""
    shapes = {key.removeprefix(CLIP_PLACE): shape for key, shape in source.shapes.items() if key.startswith(CLIP_PLACE)}
    needed = [f"embeddings.{name}.weight" for name in ("patch_embedding", "position_embedding")]
    needed.append("encoder.layers.0.mlp.fc1.weight")
    openai.need(shapes, needed, source.path)
    width, *_, patch = shapes[needed[0]]
    backbone = {
        "hidden_size": width,
        "intermediate_size": shapes[needed[2]][0],
        "num_hidden_layers": openai.depth(shapes, "encoder.layers."),
        "num_attention_heads": width // openai.HEAD_WIDTH,
        "image_size": isqrt(shapes[needed[1]][0] - 1) * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    return TowerConfig("clip_vit", backbone, layer=layer)


def _as_tower(number: int, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"towers.{number}.{key}": tensor for key, tensor in state.items()}


def _own(values: dict[str, Any], config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """What a config says of its language model alone."""
    own = config_class().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    return {key: value for key, value in values.items() if key in own}


def _slot_ids(values: dict[str, Any]) -> dict[str, int]:
    return {token: values[key] for token, key in SLOT_KEYS.items() if key in values}


def _refuse_untied(state: dict[str, torch.Tensor], language: OPTConfig, source: Source) -> None:
    """Raises UserError where a head is written that its config says is the embeddings: one would be lost."""
    names = ("language_model.lm_head.weight", "language_model.model.decoder.embed_tokens.weight")
    if language.tie_word_embeddings and all(name in state for name in names):
        head, embeddings = (state[name] for name in names)
        if head.shape != embeddings.shape or not torch.equal(head, embeddings):
            raise UserError(
                f"the head in {source.path} (lm_head.weight) differs from the embeddings, which its config says it "
                "shares; say tie_word_embeddings: false in config.json if it was trained so"
            )
