"""transformers' `LlavaNextForConditionalGeneration`: LLaVA-NeXT / 1.6 (Liu et al. 2024), read and written.

The class is in transformers, models/llava_next/modeling_llava_next.py. It is LLaVA-1.5 with images at AnyRes.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaNextConfig

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversion.chat_templates import find_template, read_chat_template
from mmchat.conversion.checks import Inputs, Sample, compare_processor, compare_with_transformers
from mmchat.conversion.formats.base import Exported, ImportedAssistant, open_tokenizer
from mmchat.conversion.formats.hf_class import export_class
from mmchat.conversion.formats.hf_language import language_reasons, read_language
from mmchat.conversion.formats.hf_vision import (
    class_tokens,
    export_image_processor,
    export_tower,
    read_tower,
    select_strategy,
    tower_reasons,
)
from mmchat.conversion.formats.llava_hf import KEYS as LLAVA_KEYS
from mmchat.conversion.formats.llava_hf import image_token
from mmchat.conversion.key_map import KeyMap
from mmchat.errors import UserError
from mmchat.model.assembly import build_config
from mmchat.pretrained import open_pretrained
from mmchat.vision import AnyRes, TowerConfig, TowerSpec, tower_spec, with_fit
from mmchat.vision.checkpoint_formats.image_processor import find_processor
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles

CLASS = "LlavaNextForConditionalGeneration"
KEYS = KeyMap(
    *LLAVA_KEYS.pairs,
    ("image_newline", "projectors.image_newline"),
    ("model.image_newline", "projectors.image_newline"),
)


class LlavaNext:
    name = "llava-next"
    description = f"transformers' {CLASS} (LLaVA-NeXT / 1.6)"
    transformers_class = CLASS

    def recognises(self, source: WeightFiles) -> bool:
        return source.config.get("model_type") == "llava_next"

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        config: Any = open_pretrained(LlavaNextConfig, str(source.path), "config")
        return open_anyres(config, AnyRes(read_grids(config, source)), source, tokenizer)

    def refusals(self, config: MMChatConfig, processor: MMChatProcessor | None = None) -> list[str]:
        return anyres_reasons(config, onevision=False)

    def export(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> Exported:
        (spec,), (values,) = model.specs, model.config.towers
        processor_values = {
            "processor_class": "LlavaNextProcessor",
            "patch_size": spec.patch_size,
            "num_additional_image_tokens": class_tokens(TowerConfig.from_dict(values)),
        }
        how = {
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": spec.image_size},
            "crop_size": {"height": spec.image_size, "width": spec.image_size},
            "do_center_crop": True,
        }
        return export_anyres(model, processor, LlavaNextConfig, CLASS, {}, processor_values, how)

    def inputs(self, sample: Sample, processor: MMChatProcessor) -> Inputs:
        return foreign_inputs(sample, processor)

    def check(self, directory: Path, samples: Sequence[Sample], processor: MMChatProcessor) -> list[str]:
        inputs = partial(self.inputs, processor=processor)
        return [
            compare_with_transformers(directory, CLASS, samples, inputs),
            compare_processor(directory, samples, inputs),
        ]


def open_anyres(config: Any, anyres: AnyRes, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
    """An assistant of one tower, two projector matrices and AnyRes.

    Raises:
        UserError: Its projector is another, or a part cannot be opened.
    """
    expected = {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}
    for key, value in expected.items():
        if (found := getattr(config, key)) != value:
            raise UserError(f"the config in {source.path} has {key} {found!r}; mmchat's mlp2x_gelu is {value!r}")
    text, tower = read_language(config, source), read_tower(config, source, several_views=True)
    opened = open_tokenizer(source, tokenizer)
    pad = image_token(config.image_token_index, opened, source)
    opened.chat_template = read_chat_template(source.path, opened)
    template = find_template(opened, opened.chat_template, pad)
    towers = [with_fit(tower, "anyres", anyres)]
    ours = build_config(text, towers, ["mlp2x_gelu"], opened, template.name, template.slots, template.system)
    return ImportedAssistant(ours, opened, KEYS.import_state(source.tensors()))


def read_grids(config: Any, source: WeightFiles) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the config's `image_grid_pinpoints`.

    Raises:
        UserError: A size is not a multiple of the tower's square, or the image processor has other sizes.
    """
    side = config.vision_config.image_size
    sizes = [tuple(size) for size in config.image_grid_pinpoints]
    if any(height % side or width % side for height, width in sizes):
        raise UserError(
            f"the config in {source.path} has image_grid_pinpoints {sizes}, which are not all multiples of the "
            f"tower's {side} pixels"
        )
    path, processor = find_processor(source.path)
    theirs = processor.get("image_grid_pinpoints")
    if theirs is not None and [tuple(size) for size in theirs] != sizes:
        raise UserError(
            f"{path} has other image_grid_pinpoints than the config.json beside it, so its slots would not be those "
            "of its features; make them equal"
        )
    return tuple((height // side, width // side) for height, width in sizes)


def anyres_reasons(config: MMChatConfig, onevision: bool) -> list[str]:
    """Why an assistant is not LLaVA-NeXT or, with `onevision`, LLaVA-OneVision."""
    reasons = language_reasons(config.text_config)
    if unfit := tower_reasons(config):
        return reasons + unfit
    if config.projectors != ["mlp2x_gelu"]:
        reasons.append(f"its projector is {config.projectors[0]}, expected mlp2x_gelu")
    how = tower_spec(TowerConfig.from_dict(config.towers[0])).preprocessing
    if not isinstance(how.tiling, AnyRes):
        return [*reasons, f"its fit is {how.fit!r}, expected 'anyres'"]
    found = how.tiling.max_tiles is not None, how.tiling.one_view_if_several
    if found != (onevision, onevision):
        limit = "max_tiles and one_view_if_several" if onevision else "no max_tiles and no one_view_if_several"
        reasons.append(f"its AnyRes has other settings, expected {limit}")
    return reasons


def export_anyres(
    model: MMChatForConditionalGeneration,
    processor: MMChatProcessor,
    config_class: Any,
    class_name: str,
    values: dict[str, Any],
    processor_values: dict[str, Any],
    image_processor: dict[str, Any],
) -> Exported:
    """Convert an assistant with AnyRes.

    Args:
        model: The assistant.
        processor: Its processor.
        config_class: Config class of transformers.
        class_name: Class of transformers.
        values: Values of the config that only this class has.
        processor_values: Values of the processor that only this class has.
        image_processor: Values of the image processor that only this class has.
    """
    (tower_values,), (spec,) = model.config.towers, model.specs
    tower, pinpoints = TowerConfig.from_dict(tower_values), _pinpoints(spec)
    config_values = {
        **export_tower(tower),
        **values,
        "image_token_index": model.config.image_token_id,
        "image_grid_pinpoints": pinpoints,
        "projector_hidden_act": "gelu",
    }
    squash = TowerSpec(**{**vars(spec), "preprocessing": with_fit(tower, "squash").preprocessing})
    image_values = {**export_image_processor(squash), "image_grid_pinpoints": pinpoints, "do_pad": True}
    processor_config = {
        "image_token": processor.slot_tokens.pad,
        "vision_feature_select_strategy": select_strategy(tower),
        **processor_values,
        "image_processor": {**image_values, **image_processor},
    }
    return export_class(class_name, config_class, KEYS, model, processor, config_values, processor_config)


def _pinpoints(spec: TowerSpec) -> list[list[int]]:
    tiling = spec.preprocessing.tiling
    assert isinstance(tiling, AnyRes)
    return [[rows * spec.image_size, columns * spec.image_size] for rows, columns in tiling.grids]


def foreign_inputs(sample: Sample, processor: MMChatProcessor) -> Inputs:
    """Inputs of transformers' class: views are padded to the most of an image, and it computes slot maps itself."""
    inputs = {name: sample.inputs[name] for name in ("input_ids", "attention_mask")}
    if not sample.images:
        return inputs
    sizes = [image.size for image in sample.images]
    views = sample.inputs["pixel_values"].split([layout.views for layout in processor.layouts(sizes)])
    return inputs | {
        "pixel_values": pad_sequence(views, batch_first=True),
        "image_sizes": torch.tensor([[height, width] for width, height in sizes]),
    }
