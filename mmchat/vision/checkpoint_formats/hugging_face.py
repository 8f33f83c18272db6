"""Hugging Face directories of transformers 4 and 5: a tower alone, or a model of which it is a part."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from mmchat.pretrained import load_strictly
from mmchat.vision.checkpoint_formats import sam
from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, with_backbone_prefix
from mmchat.vision.checkpoint_formats.image_processor import read_preprocessing
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.families import FAMILIES
from mmchat.vision.spec import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing, TowerConfig
from mmchat.vision.tower import config_keys


@dataclass(frozen=True)
class Kind:
    """A `model_type`. others: beginnings of other parts' keys. settings: fields of `TowerConfig`."""

    family: str
    others: tuple[str, ...] = ()
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    settings: dict[str, Any] = field(default_factory=dict)


INTERNVIT = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, fit="squash")
"""OpenGVLab/InternVL, internvl/train/dataset.py `build_transform`."""
_OTHER_HALF = ("text_", "visual_projection", "logit_")
_CLASSIFIER = ("classifier.",)
_SIGLIP = Preprocessing(HALF, HALF, fit="squash")
_SIGLIP2 = Preprocessing(HALF, HALF, "bilinear", "native")
_DINOV2 = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop_fraction=224 / 256)
_DINOV3 = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "bilinear", "squash")
_NORMED = {"final_norm": True}
KINDS = {
    "clip": Kind("clip_vit", _OTHER_HALF),
    "clip_vision_model": Kind("clip_vit", _OTHER_HALF),
    "dinov2": Kind("dinov2", _CLASSIFIER, _DINOV2, _NORMED),
    "dinov2_with_registers": Kind("dinov2_with_registers", _CLASSIFIER, _DINOV2, {**_NORMED, "antialias": True}),
    "dinov3_vit": Kind("dinov3_vit", preprocessing=_DINOV3, settings=_NORMED),
    "siglip": Kind("siglip", _OTHER_HALF, _SIGLIP),
    "siglip_vision_model": Kind("siglip", _OTHER_HALF, _SIGLIP),
    "internvl_vision": Kind("internvit", preprocessing=INTERNVIT, settings=_NORMED),
    "siglip2": Kind("siglip2", _OTHER_HALF, _SIGLIP2, {"antialias": True}),
    "siglip2_vision_model": Kind("siglip2", _OTHER_HALF, _SIGLIP2, {"antialias": True}),
    "sam": Kind("sam", (*sam.OTHERS, "shared_image_embedding."), sam.PREPROCESSING),
    "sam_vision_model": Kind("sam", preprocessing=sam.PREPROCESSING),
}


class HuggingFace:
    name = "Hugging Face directory"

    def recognises(self, source: WeightFiles) -> bool:
        return source.config.get("model_type") in KINDS

    def open(self, source: WeightFiles, weights: bool) -> TowerCheckpoint:
        kind = KINDS[source.config["model_type"]]
        family = FAMILIES[kind.family]
        preprocessing, side = read_preprocessing(source.path, kind.preprocessing)
        backbone = config_values(family.config_class, source.path)
        config = TowerConfig(kind.family, backbone, preprocessing=preprocessing, **kind.settings)
        if not weights:
            return TowerCheckpoint(config, None, side)
        # transformers knows how keys were called in its older versions.
        loaded = load_strictly(family.backbone_class, source.path, others=kind.others)
        return TowerCheckpoint(config, with_backbone_prefix(loaded.state_dict()), side)


def config_values(config_class: type[PreTrainedConfig], directory: Path) -> dict[str, Any]:
    """What a directory's config says of a backbone, without what every config of transformers holds."""
    said = config_class.from_pretrained(directory).to_diff_dict()
    return {key: value for key, value in said.items() if key in config_keys(config_class)}
