"""Hugging Face directories of transformers 4 and 5: a tower alone, or a model with a tower."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from mmchat.errors import UserError
from mmchat.pretrained import load_state_strictly, open_pretrained
from mmchat.vision.checkpoint_formats import sam
from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, with_backbone_prefix
from mmchat.vision.checkpoint_formats.image_processor import read_preprocessing
from mmchat.vision.checkpoint_formats.weight_files import READ_BY_TRANSFORMERS, WeightFiles
from mmchat.vision.families import FAMILIES
from mmchat.vision.spec import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing, TowerConfig
from mmchat.vision.tower import config_keys


@dataclass(frozen=True)
class ModelType:
    """How a `model_type` of transformers is opened.

    Attributes:
        family: Key of `FAMILIES`.
        other_parts: Prefixes of the keys of other parts.
        preprocessing: Values for what the image processor file does not state.
        settings: Fields of `TowerConfig`.
    """

    family: str
    other_parts: tuple[str, ...] = ()
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    settings: dict[str, Any] = field(default_factory=dict)


INTERNVIT_PREPROCESSING = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, fit="squash")
"""`build_transform` in OpenGVLab/InternVL, internvl/train/dataset.py."""
_CLIP_OTHERS = ("text_", "visual_projection", "logit_")
_DINO_OTHERS = ("classifier.",)
_SIGLIP = Preprocessing(HALF, HALF, fit="squash")
_SIGLIP2 = Preprocessing(HALF, HALF, "bilinear", "native")
_DINOV2 = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop_fraction=224 / 256)
_DINOV3 = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "bilinear", "squash")
_NORMED = {"final_norm": True}
MODEL_TYPES = {
    "clip": ModelType("clip_vit", _CLIP_OTHERS),
    "clip_vision_model": ModelType("clip_vit", _CLIP_OTHERS),
    "dinov2": ModelType("dinov2", _DINO_OTHERS, _DINOV2, _NORMED),
    "dinov2_with_registers": ModelType("dinov2_with_registers", _DINO_OTHERS, _DINOV2, {**_NORMED, "antialias": True}),
    "dinov3_vit": ModelType("dinov3_vit", preprocessing=_DINOV3, settings=_NORMED),
    "siglip": ModelType("siglip", _CLIP_OTHERS, _SIGLIP),
    "siglip_vision_model": ModelType("siglip", _CLIP_OTHERS, _SIGLIP),
    "internvl_vision": ModelType("internvit", preprocessing=INTERNVIT_PREPROCESSING, settings=_NORMED),
    "siglip2": ModelType("siglip2", _CLIP_OTHERS, _SIGLIP2, {"antialias": True}),
    "siglip2_vision_model": ModelType("siglip2", _CLIP_OTHERS, _SIGLIP2, {"antialias": True}),
    "sam": ModelType("sam", (*sam.OTHERS, "shared_image_embedding."), sam.PREPROCESSING),
    "sam_vision_model": ModelType("sam", preprocessing=sam.PREPROCESSING),
}


class HuggingFace:
    name = "Hugging Face directory"

    def recognises(self, files: WeightFiles) -> bool:
        return files.config.get("model_type") in MODEL_TYPES

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        model_type = MODEL_TYPES[files.config["model_type"]]
        family = FAMILIES[model_type.family]
        preprocessing, side = read_preprocessing(files.path, model_type.preprocessing)
        backbone = config_values(family.config_class, files.path)
        config = TowerConfig(model_type.family, backbone, preprocessing=preprocessing, **model_type.settings)
        if not weights:
            return TowerCheckpoint(config, None, side)
        loaded = load_part(family.backbone_class, files, model_type.other_parts)
        return TowerCheckpoint(config, with_backbone_prefix(loaded.state_dict()), side)


def load_part(model_class: type[PreTrainedModel], files: WeightFiles, others: tuple[str, ...]) -> PreTrainedModel:
    """Open a part of a model strictly. transformers renames the keys of its older versions.

    Args:
        model_class: Class of the part.
        files: The whole model.
        others: Prefixes of the other parts' keys. They are left out before transformers sees them, because it reports
            keys that it does not expect.

    Raises:
        UserError: There are no weights, or keys are missing, left over or of another shape.
    """
    if not files.shapes:
        raise UserError(f"{files.path} holds no weights; expected {' or '.join(READ_BY_TRANSFORMERS)}, or their shards")
    config = open_pretrained(model_class.config_class, str(files.path), "config")
    return load_state_strictly(model_class, config, files.tensors(without=others), files.path)


def config_values(config_class: type[PreTrainedConfig], directory: Path) -> dict[str, Any]:
    """Backbone values that a directory's config states, without the fields that all configs of transformers have."""
    stated = open_pretrained(config_class, str(directory), "config").to_diff_dict()
    return {key: value for key, value in stated.items() if key in config_keys(config_class)}
