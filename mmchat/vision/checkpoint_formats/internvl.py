"""InternVL assistants of transformers, of which the tower is taken as the assistant takes it."""

from typing import Any

from transformers import InternVLVisionConfig

from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, part_of, with_backbone_prefix
from mmchat.vision.checkpoint_formats.hugging_face import INTERNVIT, config_values
from mmchat.vision.checkpoint_formats.image_processor import read_preprocessing
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import TowerConfig

TOWER = ("model.vision_tower.", "vision_tower.")
"""What its keys begin with in transformers 5 and 4."""
_PARTS = ("language_model.", "multi_modal_projector.")
OTHERS = (*_PARTS, *(f"model.{part}" for part in _PARTS), "lm_head.")


class InternVL:
    name = "transformers' InternVL directory"

    def recognises(self, source: WeightFiles) -> bool:
        return source.config.get("model_type") == "internvl"

    def open(self, source: WeightFiles, weights: bool) -> TowerCheckpoint:
        preprocessing, side = read_preprocessing(source.path, INTERNVIT)
        config = TowerConfig(
            "internvit",
            config_values(InternVLVisionConfig, source.path),
            preprocessing=preprocessing,
            **features_of(source.config),
        )
        if not weights:
            return TowerCheckpoint(config, None, side)
        prefix = next((one for one in TOWER if any(key.startswith(one) for key in source.shapes)), TOWER[0])
        return TowerCheckpoint(config, with_backbone_prefix(part_of(source, prefix, OTHERS)), side)


def features_of(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of `TowerConfig` as in `InternVLModel.get_image_features`: -1 is the last hidden state, normed; any other
    layer is taken as it is."""
    layer = config.get("vision_feature_layer", -1)
    return {
        "layer": layer,
        "final_norm": layer == -1,
        "class_token": config.get("vision_feature_select_strategy", "default") != "default",
    }
