"""InternVL assistants of transformers. The tower gives the features that the assistant uses."""

from typing import Any

from transformers import InternVLVisionConfig

from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, tensors_below, with_backbone_prefix
from mmchat.vision.checkpoint_formats.hugging_face import INTERNVIT_PREPROCESSING, config_values
from mmchat.vision.checkpoint_formats.image_processor import read_preprocessing
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import TowerConfig

TOWER_PREFIXES = ("model.vision_tower.", "vision_tower.")
"""Prefixes of the tower's keys in transformers 5 and 4."""
_PARTS = ("language_model.", "multi_modal_projector.")
OTHERS = (*_PARTS, *(f"model.{part}" for part in _PARTS), "lm_head.")


class InternVL:
    name = "transformers' InternVL directory"

    def recognises(self, files: WeightFiles) -> bool:
        return files.config.get("model_type") == "internvl"

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        preprocessing, side = read_preprocessing(files.path, INTERNVIT_PREPROCESSING)
        config = TowerConfig(
            "internvit",
            config_values(InternVLVisionConfig, files.path),
            preprocessing=preprocessing,
            **feature_settings(files.config),
        )
        if not weights:
            return TowerCheckpoint(config, None, side)
        new, old = TOWER_PREFIXES
        prefix = old if any(key.startswith(old) for key in files.shapes) else new
        return TowerCheckpoint(config, with_backbone_prefix(tensors_below(files, prefix, OTHERS)), side)


def feature_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of `TowerConfig` as in `InternVLModel.get_image_features`: layer -1 is normed, other layers are not."""
    layer = config.get("vision_feature_layer", -1)
    return {
        "layer": layer,
        "final_norm": layer == -1,
        "class_token": config.get("vision_feature_select_strategy", "default") != "default",
    }
