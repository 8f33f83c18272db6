"""Hugging Face directories of transformers 4 and 5: a tower alone, or a model of which it is a part."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.pretrained import load_strictly
from mmchat.vision.families import FAMILIES
from mmchat.vision.layouts import sam
from mmchat.vision.layouts.layout import Found, in_backbone
from mmchat.vision.source import Source
from mmchat.vision.spec import Preprocessing, TowerConfig

_PIL_RESAMPLING = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Kind:
    """A `model_type`. others: beginnings of other parts' keys. settings: fields of `TowerConfig`."""

    family: str
    others: tuple[str, ...] = ()
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    settings: dict[str, Any] = field(default_factory=dict)


_OTHER_HALF = ("text_", "visual_projection", "logit_")
KINDS = {
    "clip": Kind("clip_vit", _OTHER_HALF),
    "clip_vision_model": Kind("clip_vit", _OTHER_HALF),
    "sam": Kind("sam", (*sam.OTHERS, "shared_image_embedding."), sam.PREPROCESSING),
    "sam_vision_model": Kind("sam", preprocessing=sam.PREPROCESSING),
}


class HuggingFace:
    name = f"Hugging Face directory ({', '.join(KINDS)})"

    def recognises(self, source: Source) -> bool:
        return source.config.get("model_type") in KINDS

    def open(self, source: Source, weights: bool) -> Found:
        kind = KINDS[source.config["model_type"]]
        family = FAMILIES[kind.family]
        config = TowerConfig(
            kind.family,
            family.config_class.from_pretrained(source.path).to_diff_dict(),
            preprocessing=read_preprocessing(source.path / "preprocessor_config.json", kind.preprocessing),
            **kind.settings,
        )
        if not weights:
            return Found(config, None)
        # transformers knows how keys were called in its older versions.
        backbone = load_strictly(family.backbone_class, source.path, others=kind.others)
        return Found(config, in_backbone(backbone.state_dict()))


def read_preprocessing(path: Path, usual: Preprocessing) -> Preprocessing:
    """What an image processor's file says; `usual` where it says nothing, or is not there.

    Raises:
        UserError: it resamples as no tower here does.
    """
    if not path.exists():
        return usual
    values = read_json(path)
    resample = values.get("resample")
    if resample is not None and resample not in _PIL_RESAMPLING:
        raise UserError(f"{path} resamples by Pillow's filter {resample}; known here: {_PIL_RESAMPLING}")
    crops = values.get("do_center_crop")
    return Preprocessing(
        mean=values.get("image_mean", usual.mean),
        std=values.get("image_std", usual.std),
        resample=usual.resample if resample is None else _PIL_RESAMPLING[resample],
        fit=usual.fit if crops is None else "shortest-edge-crop" if crops else "squash",
    )
