"""InternVL (Zhu et al. 2025, arXiv:2504.10479) in transformers' layout, `InternVLForConditionalGeneration`, read and
written.

InternViT, pixel shuffle of 2x2 patches, norm and two-layer MLP, a causal language model; images in tiles. The class is
in transformers, models/internvl/modeling_internvl.py, the processor in processing_internvl.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import InternVLConfig

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversation import SlotTokens
from mmchat.conversion.chat_templates import matching_template
from mmchat.conversion.checks import Sample, compare_processor, compare_with_transformers
from mmchat.conversion.formats.base import Exported, ImportedAssistant, check_token_ids, open_tokenizer
from mmchat.conversion.formats.hf_class import export_class
from mmchat.conversion.formats.hf_language import LANGUAGE_KEYS, language_reasons, read_language
from mmchat.conversion.formats.internvl_processor import (
    SLOT_TOKENS,
    chat_template,
    fit_reasons,
    processor_reasons,
    processor_values,
    tokenizer_values,
)
from mmchat.conversion.key_map import KeyMap
from mmchat.errors import UserError
from mmchat.model.assembly import build_config
from mmchat.model.projectors.pixel_shuffle import SHUFFLE
from mmchat.pretrained import open_pretrained
from mmchat.vision import TowerConfig, tower_spec, with_fit
from mmchat.vision.checkpoint_formats import internvl as tower_format
from mmchat.vision.checkpoint_formats.image_processor import find_processor
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.families.internvit import InternViT
from mmchat.vision.transforms.tiling import Tiling

CLASS = "InternVLForConditionalGeneration"
PROJECTOR = "pixel_shuffle"
SLOTS = SlotTokens("<IMG_CONTEXT>", "<img>", "</img>")
"""Slot tokens of the published models."""
KEYS = KeyMap(
    ("vision_tower.*", "towers.0.backbone.*"),
    ("multi_modal_projector.layer_norm.*", "projectors.0.1.*"),
    ("multi_modal_projector.linear_1.*", "projectors.0.2.*"),
    ("multi_modal_projector.linear_2.*", "projectors.0.4.*"),
    *LANGUAGE_KEYS,
    ("model.vision_tower.*", "towers.0.backbone.*"),
    ("model.multi_modal_projector.layer_norm.*", "projectors.0.1.*"),
    ("model.multi_modal_projector.linear_1.*", "projectors.0.2.*"),
    ("model.multi_modal_projector.linear_2.*", "projectors.0.4.*"),
)
"""transformers 4's names, which are written because vLLM opens them, and transformers 5's."""


class InternVL:
    name = "internvl"
    description = f"transformers' {CLASS}"
    transformers_class = CLASS

    def recognises(self, source: WeightFiles) -> bool:
        return source.config.get("model_type") == "internvl"

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        values: Any = open_pretrained(InternVLConfig, str(source.path), "config")
        refuse_other_projector(values.downsample_ratio, values.projector_hidden_act, source)
        opened = open_tokenizer(source, tokenizer)
        slots = slot_tokens(opened)
        check_token_ids(opened, {slots.pad: values.image_token_id}, source)
        language = read_language(values, source)
        template, system = "chatml", ""
        if opened.chat_template:
            template, system = matching_template(opened, slots, opened.chat_template, slots.pad)
        config = build_config(language, [tower_config(source)], [PROJECTOR], opened, template, slots, system)
        return ImportedAssistant(config, opened, KEYS.import_state(source.tensors()))

    def refusals(self, config: MMChatConfig, processor: MMChatProcessor | None = None) -> list[str]:
        reasons = language_reasons(config.text_config) + _tower_reasons(config)
        if any(projector != PROJECTOR for projector in config.projectors):
            reasons.append(f"its projector is {', '.join(config.projectors)}, expected {PROJECTOR}")
        slots = SlotTokens(**config.slots)
        if slots.start is None or slots.end is None:
            reasons.append("it has no tokens before and after an image's slots, which the class writes")
        elif processor is not None:
            reasons += processor_reasons(processor)
        return reasons

    def export(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> Exported:
        (spec,), (values,) = model.specs, model.config.towers
        return export_class(
            CLASS,
            InternVLConfig,
            KEYS,
            model,
            processor,
            {
                **_tower_values(TowerConfig.from_dict(values)),
                "image_token_id": model.config.image_token_id,
                "image_seq_length": model.image_tokens,
                "downsample_ratio": 1 / SHUFFLE,
                "projector_hidden_act": "gelu",
            },
            processor_values(spec, model.image_tokens),
            chat_template=chat_template(processor),
            tokenizer_config=tokenizer_values(processor),
        )

    def check(self, directory: Path, samples: Sequence[Sample], processor: MMChatProcessor) -> list[str]:
        return [compare_with_transformers(directory, CLASS, samples), compare_processor(directory, samples)]


def _tower_reasons(config: MMChatConfig) -> list[str]:
    towers = [TowerConfig.from_dict(values) for values in config.towers]
    if len(towers) != 1:
        return [f"it has {len(towers)} vision towers, expected one"]
    (tower,) = towers
    if tower.family != "internvit":
        return [f"its tower is of family {tower.family}, expected internvit"]
    reasons = fit_reasons(tower_spec(tower))
    if tower.class_token:
        reasons.append("its features include the class token")
    if not isinstance(tower.layer, int):
        reasons.append(f"its features are those of {len(tower.layer)} layers, expected one")
    elif tower.final_norm and _has_norm(tower) and not _is_last(tower):
        reasons.append(f"its features are normed and of layer {tower.layer}; the class norms the last layer only")
    return reasons


def _tower_values(tower: TowerConfig) -> dict[str, Any]:
    """Values of `InternVLConfig`. The class norms layer -1; the last layer by its number from 0 is not normed."""
    backbone = InternViT.backbone_config(tower)
    last = -1 if tower.final_norm or not _has_norm(tower) else backbone.num_hidden_layers
    return {
        "vision_config": backbone.to_dict(),
        "vision_feature_layer": last if _is_last(tower) else tower.layer,
        "vision_feature_select_strategy": "default",
    }


def _has_norm(tower: TowerConfig) -> bool:
    return not InternViT.backbone_config(tower).use_mean_pooling


def _is_last(tower: TowerConfig) -> bool:
    return tower.layer in (-1, InternViT.backbone_config(tower).num_hidden_layers)


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
