"""CLIP and SigLIP towers and their image processors inside the assistant classes of transformers."""

from typing import Any, cast

from PIL import Image
from transformers import PreTrainedConfig

from mmchat.auto import MMChatConfig
from mmchat.errors import UserError
from mmchat.vision import TowerConfig, TowerSpec
from mmchat.vision.checkpoint_formats.hugging_face import MODEL_TYPES
from mmchat.vision.checkpoint_formats.image_processor import read_preprocessing
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.families import FAMILIES
from mmchat.vision.tower import config_keys

VISION_KEYS = (
    ("*.embeddings.position_ids", None),
    ("vision_tower.vision_model.*", "towers.0.backbone.*"),
    ("model.vision_tower.vision_model.*", "towers.0.backbone.*"),
    ("vision_tower.*", "towers.0.backbone.*"),
    ("model.vision_tower.*", "towers.0.backbone.*"),
)
"""Pairs for a `KeyMap`: transformers 4's names, which are written because vLLM opens them, and transformers 5's."""
FAMILY_OF = {"clip_vision_model": "clip_vit", "siglip_vision_model": "siglip"}
"""`model_type` of a vision config -> family."""
MODEL_TYPE_OF = {family: model_type for model_type, family in FAMILY_OF.items()}


def read_tower(config: PreTrainedConfig, source: WeightFiles, several_views: bool = False) -> TowerConfig:
    """The tower of an assistant whose config has `vision_feature_layer` and `vision_feature_select_strategy`.

    Args:
        config: The assistant's config.
        source: Its files, which may hold an image processor.
        several_views: Whether the class makes its views itself, so that the image processor's size is not one square.

    Raises:
        UserError: The tower is of another kind, its first patch is dropped, or its size is not its image processor's.
    """
    vision = config.vision_config
    if vision.model_type not in FAMILY_OF:
        raise UserError(
            f"the vision tower in {source.path} is a {vision.model_type}, expected one of {', '.join(FAMILY_OF)}"
        )
    family = FAMILY_OF[vision.model_type]
    keeps_all = config.vision_feature_select_strategy == "full"
    if family == "siglip" and not keeps_all:
        raise UserError(
            f"the config in {source.path} has vision_feature_select_strategy 'default' for a SigLIP tower: it drops "
            "the first patch, because SigLIP has no class token; mmchat keeps all patches"
        )
    kind = MODEL_TYPES[vision.model_type]
    preprocessing, side = read_preprocessing(source.path, kind.preprocessing)
    tower = TowerConfig(
        family,
        vision_values(vision, family),
        layer=config.vision_feature_layer,
        class_token=keeps_all and family == "clip_vit",
        preprocessing=preprocessing,
    )
    if not several_views and side not in (None, vision.image_size):
        raise UserError(
            f"the tower in {source.path} takes images of {vision.image_size} pixels, but its image processor makes "
            f"{side}; fix preprocessor_config.json or processor_config.json"
        )
    return tower


def vision_values(vision: PreTrainedConfig, family: str) -> dict[str, Any]:
    """`TowerConfig.backbone` of a vision config."""
    known = config_keys(FAMILIES[family].config_class)
    return {key: value for key, value in vision.to_diff_dict().items() if key in known}


def tower_reasons(config: MMChatConfig) -> list[str]:
    """Why the features of an assistant are not those of a class with one CLIP or SigLIP tower."""
    towers = [TowerConfig.from_dict(values) for values in config.towers]
    if len(towers) != 1:
        return [f"it has {len(towers)} vision towers, expected one"]
    (tower,) = towers
    if tower.family not in MODEL_TYPE_OF:
        return [f"its tower is a {tower.family}, expected {' or '.join(MODEL_TYPE_OF)}"]
    return ["its tower's last norm is applied to the features (final_norm)"] if tower.final_norm else []


def export_tower(tower: TowerConfig) -> dict[str, Any]:
    """Values of an assistant's config: its vision config, feature layer and select strategy."""
    family = FAMILIES[tower.family]
    return {
        "vision_config": {**family.backbone_config(tower).to_dict(), "model_type": MODEL_TYPE_OF[tower.family]},
        "vision_feature_layer": tower.layer if isinstance(tower.layer, int) else list(tower.layer),
        "vision_feature_select_strategy": select_strategy(tower),
    }


def select_strategy(tower: TowerConfig) -> str:
    """ "default" drops the first feature, CLIP's class token; "full" keeps all."""
    return "full" if tower.class_token or tower.family == "siglip" else "default"


def class_tokens(tower: TowerConfig) -> int:
    """What processors of transformers call `num_additional_image_tokens`."""
    return int(tower.family == "clip_vit")


def export_image_processor(spec: TowerSpec) -> dict[str, Any]:
    """Values of the image processor of transformers that makes the same squares.

    LlavaImageProcessor pads (`do_pad`; transformers, models/llava/image_processing_llava.py), CLIPImageProcessor crops,
    SiglipImageProcessor squashes.

    Args:
        spec: A tower whose fit is one of `SQUARE_FITS`.
    """
    how, side, shared = spec.preprocessing, spec.image_size, pixel_values(spec)
    square = {"height": side, "width": side}
    if how.fit == "squash":
        return {"image_processor_type": "SiglipImageProcessor", "size": square, "do_center_crop": False, **shared}
    if how.fit == "pad":
        size = {"do_pad": True, "size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
        return {"image_processor_type": "LlavaImageProcessor", **size, **shared}
    edge = round(side / how.crop_fraction)
    size = {"size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": square}
    return {"image_processor_type": "CLIPImageProcessor", **size, **shared}


def pixel_values(spec: TowerSpec) -> dict[str, Any]:
    """Values that every image processor of transformers has: resampling, mean, standard deviation."""
    how = spec.preprocessing
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
        "resample": cast(int, Image.Resampling[how.resample.upper()].value),
    }


SQUARE_FITS = ("shortest-edge-crop", "squash", "pad")
"""Fits that `export_image_processor` writes."""


def fit_reasons(spec: TowerSpec) -> list[str]:
    """Why no image processor of one square makes this tower's views."""
    fit = spec.preprocessing.fit
    return [] if fit in SQUARE_FITS else [f"its fit is {fit!r}, expected {', '.join(SQUARE_FITS)}"]
