"""InternVL (Zhu et al. 2025, arXiv:2504.10479) in transformers' layout: `InternVLForConditionalGeneration`.

InternViT, pixel shuffle of 2x2 patches, norm and two-layer MLP, a causal language model; images in tiles.
"""

from typing import Any

from transformers import InternVLConfig

from mmchat.conversation import SlotTokens
from mmchat.conversion.chat_templates import matching_template
from mmchat.conversion.formats.base import ImportedAssistant, check_token_ids, open_tokenizer
from mmchat.conversion.key_map import KeyMap
from mmchat.errors import UserError
from mmchat.model.assembly import build_config
from mmchat.model.projectors.pixel_shuffle import SHUFFLE
from mmchat.vision import TowerConfig, tower_spec, with_fit
from mmchat.vision.checkpoint_formats import internvl as tower_format
from mmchat.vision.checkpoint_formats.image_processor import find_processor
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.transforms.tiling import Tiling

PROJECTOR = "pixel_shuffle"
SLOT_TOKENS = {"pad": "context_image_token", "start": "start_image_token", "end": "end_image_token"}
"""Field of `SlotTokens` -> attribute of the tokenizer that `InternVLProcessor` reads."""
SLOTS = SlotTokens("<IMG_CONTEXT>", "<img>", "</img>")
"""Slot tokens of the published models."""
KEYS = KeyMap(
    ("vision_tower.*", "towers.0.backbone.*"),
    ("multi_modal_projector.layer_norm.*", "projectors.0.1.*"),
    ("multi_modal_projector.linear_1.*", "projectors.0.2.*"),
    ("multi_modal_projector.linear_2.*", "projectors.0.4.*"),
    ("language_model.*", "language_model.*"),
    # transformers 5 in memory, and with save_original_format=False
    ("model.vision_tower.*", "towers.0.backbone.*"),
    ("model.multi_modal_projector.layer_norm.*", "projectors.0.1.*"),
    ("model.multi_modal_projector.linear_1.*", "projectors.0.2.*"),
    ("model.multi_modal_projector.linear_2.*", "projectors.0.4.*"),
    ("model.language_model.*", "language_model.model.*"),
    ("lm_head.*", "language_model.lm_head.*"),
)


class InternVL:
    name = "internvl"
    description = "transformers' InternVL (model_type internvl)"

    def recognises(self, source: WeightFiles) -> bool:
        return source.config.get("model_type") == "internvl"

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        values = InternVLConfig.from_pretrained(source.path)
        refuse_other_projector(values.downsample_ratio, values.projector_hidden_act, source)
        opened = open_tokenizer(source, tokenizer)
        slots = slot_tokens(opened)
        check_token_ids(opened, {slots.pad: values.image_token_id}, source)
        language = values.text_config
        language.tie_word_embeddings = values.tie_word_embeddings
        template, system = "chatml", ""
        if opened.chat_template:
            template, system = matching_template(opened, slots, opened.chat_template, slots.pad)
        config = build_config(language, [tower_config(source)], [PROJECTOR], opened, template, slots, system)
        return ImportedAssistant(config, opened, KEYS.import_state(source.tensors()))


def slot_tokens(tokenizer: Any) -> SlotTokens:
    """The tokens that `InternVLProcessor` writes for an image."""
    return SlotTokens(**{field: getattr(tokenizer, name, getattr(SLOTS, field)) for field, name in SLOT_TOKENS.items()})


def refuse_other_projector(downsample_ratio: float, activation: str, source: WeightFiles) -> None:
    """Raise UserError unless a projector is `PixelShuffleMLP`."""
    if downsample_ratio != 1 / SHUFFLE or activation != "gelu":
        raise UserError(
            f"{source.path} has downsample_ratio {downsample_ratio} and projector activation {activation!r}; expected "
            f"{1 / SHUFFLE} and 'gelu', which every published InternVL has"
        )


def tower_config(source: WeightFiles) -> TowerConfig:
    """The tower, with the tiles of `InternVLProcessor`: it always crops, whatever `crop_to_patches` the file has."""
    config, _, side = tower_format.InternVL().open(source, weights=False)
    path, processor = find_processor(source.path)
    expected = tower_spec(config).image_size
    if side not in (None, expected):
        raise UserError(f"{path} makes squares of {side} pixels, but the tower in {source.path} has {expected}")
    tiling = Tiling(processor.get("min_patches", Tiling.min_tiles), processor.get("max_patches", Tiling.max_tiles))
    return config if tiling.max_tiles == 1 else with_fit(config, "tiles", tiling)
