"""Idefics3 in transformers' layout, written: `Idefics3ForConditionalGeneration`. SmolVLM's class computes the same.

The class is in transformers, models/idefics3/modeling_idefics3.py, the processor in processing_idefics3.py.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, Idefics3Config, Idefics3VisionConfig

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversion.chat_templates import plain_chat_template
from mmchat.conversion.checks import Inputs, Sample, compare_processor, compare_with_transformers
from mmchat.conversion.formats.base import Exported
from mmchat.conversion.formats.hf_class import export_class
from mmchat.conversion.formats.hf_language import language_reasons
from mmchat.conversion.formats.hf_vision import pixel_values
from mmchat.conversion.formats.idefics3 import KEYS, position_rows
from mmchat.files import write_text
from mmchat.model.projectors import projector_kind
from mmchat.model.projectors.pixel_shuffle import PixelShuffleLinear
from mmchat.vision import Markers, Split, TowerConfig, TowerSpec, tower_spec
from mmchat.vision.families.siglip import Siglip
from mmchat.vision.tower import config_keys
from mmchat.vision.transforms.split import DEFAULT_TILES

CLASS = "Idefics3ForConditionalGeneration"
IMAGE, AROUND = "<image>", "<fake_token_around_image>"
"""The tokens that `Idefics3Processor` writes, whatever the tokenizer calls them."""
POOLING = "towers.0.backbone.head."


class Idefics3Target:
    name = "idefics3"
    description = f"transformers' {CLASS}"
    transformers_class = CLASS

    def refusals(self, config: MMChatConfig, processor: MMChatProcessor | None = None) -> list[str]:
        reasons = language_reasons(config.text_config)
        towers = [TowerConfig.from_dict(values) for values in config.towers]
        if len(towers) != 1:
            return [*reasons, f"it has {len(towers)} vision towers, expected one"]
        reasons += _tower_reasons(towers[0])
        if not isinstance(projector_kind(config.projectors[0]), PixelShuffleLinear):
            reasons.append(f"its projector is {config.projectors[0]}, expected pixel_shuffle{{n}}_linear")
        return reasons + ([] if processor is None else _token_reasons(processor))

    def export(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> Exported:
        (spec,), (values,), (projector,) = model.specs, model.config.towers, model.config.projectors
        kind, pad = projector_kind(projector), processor.slot_tokens.pad
        assert isinstance(kind, PixelShuffleLinear), "refusals was not asked"
        return export_class(
            CLASS,
            Idefics3Config,
            KEYS,
            model,
            processor,
            {
                "vision_config": _vision_values(TowerConfig.from_dict(values)),
                "image_token_id": model.config.image_token_id,
                "scale_factor": kind.factor,
                "pad_token_id": model.generation_config.pad_token_id,
            },
            {
                "processor_class": "Idefics3Processor",
                "image_seq_len": model.image_tokens,
                "image_processor": _image_processor_values(spec),
            },
            # The class has no pooling head, which the features do not use.
            state={key: value for key, value in model.state_dict().items() if not key.startswith(POOLING)},
            tokenizer=_renamed(processor.tokenizer, pad, IMAGE),
            chat_template=plain_chat_template(processor).replace(pad, IMAGE),
        )

    def inputs(self, sample: Sample, processor: MMChatProcessor) -> Inputs:
        """The class takes the views of a conversation as one row."""
        return {name: value[None] if name == "pixel_values" else value for name, value in sample.inputs.items()}

    def check(self, directory: Path, samples: Sequence[Sample], processor: MMChatProcessor) -> list[str]:
        inputs = partial(self.inputs, processor=processor)
        return [
            compare_with_transformers(directory, CLASS, samples, inputs),
            compare_processor(directory, samples, inputs),
        ]


def _tower_reasons(tower: TowerConfig) -> list[str]:
    if tower.family != "siglip":
        return [f"its tower is a {tower.family}, expected siglip"]
    spec, reasons = tower_spec(tower), []
    if not tower.final_norm:
        reasons.append("its tower's last norm is not applied to the features (final_norm), as the class does")
    if tower.layer not in (-1, Siglip.backbone_config(tower).num_hidden_layers):
        reasons.append(f"its features are of layer {tower.layer}, expected the last")
    if not torch.equal(position_rows(spec.tokens), torch.arange(spec.tokens)):
        side = round(spec.tokens**0.5)
        reasons.append(f"its tower has {side} patches a side, for which the class finds a neighbour's positions")
    return reasons + _fit_reasons(spec)


def _fit_reasons(spec: TowerSpec) -> list[str]:
    """Why `Idefics3ImageProcessor` and `Idefics3Processor` make other views, or other text around them."""
    how, split = spec.preprocessing, spec.preprocessing.tiling
    if not isinstance(split, Split):
        return [f"its fit is {how.fit!r}, expected 'split'"]
    reasons = []
    if split.rule != "idefics3" or split.global_view != "last" or split.global_resample not in (None, how.resample):
        reasons.append("its split has another rule, global_view or global_resample, expected Idefics3's")
    if split.markers != Markers():
        reasons.append(f"its split has other markers, expected {Markers()}")
    if _has_bytes_of_zero(how.mean):
        reasons.append(f"a view of the colour of its mean, {how.mean}, is all 0, which the class takes for padding")
    return reasons


def _has_bytes_of_zero(mean: tuple[float, ...]) -> bool:
    """Whether a byte of each channel is exactly 0 after normalising."""
    unit = (np.arange(256) * (1 / 255)).astype(np.float32)
    return all((unit == np.float32(channel)).any() for channel in mean)


def _token_reasons(processor: MMChatProcessor) -> list[str]:
    """Why the class's processor would write other tokens."""
    tokenizer, reasons = processor.tokenizer, []
    if processor.slot_tokens.pad != IMAGE and IMAGE in tokenizer.get_vocab():
        reasons.append(f"its tokenizer has a token {IMAGE} beside its image token {processor.slot_tokens.pad}")
    if AROUND not in tokenizer.get_added_vocab():
        reasons.append(f"its tokenizer has no added token {AROUND}, which the class writes around images")
    return reasons


def _vision_values(tower: TowerConfig) -> dict[str, Any]:
    known = config_keys(Idefics3VisionConfig)
    values = Siglip.backbone_config(tower).to_dict()
    return {key: value for key, value in values.items() if key in known}


def _image_processor_values(spec: TowerSpec) -> dict[str, Any]:
    """Values of `Idefics3ImageProcessor`."""
    split = spec.preprocessing.tiling
    assert isinstance(split, Split)
    longest = DEFAULT_TILES * spec.image_size if split.longest_edge is None else split.longest_edge
    return {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_image_splitting": split.cut,
        "size": {"longest_edge": longest},
        "max_image_size": {"longest_edge": spec.image_size},
        "do_pad": True,
        **pixel_values(spec),
    }


def _renamed(tokenizer: Any, token: str, name: str) -> Any:
    """The tokenizer with another name of an added token."""
    if token == name:
        return tokenizer
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).glob("*.json"):
            write_text(path, path.read_text(encoding="utf-8").replace(json.dumps(token), json.dumps(name)))
        renamed = AutoTokenizer.from_pretrained(folder)
    assert renamed.convert_tokens_to_ids(name) == tokenizer.convert_tokens_to_ids(token)
    return renamed
