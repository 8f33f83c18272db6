"""Directories that mmchat wrote (assistant, dual encoder, classifier, tower). The first tower is opened."""

from mmchat.vision.checkpoint_formats.base import TowerCheckpoint
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import TowerConfig


class MMChatDirectory:
    name = "mmchat's model directory"

    def recognises(self, files: WeightFiles) -> bool:
        return files.config.get("model_type") in ("mmchat", "mmchat_clip", "mmchat_classifier", "mmchat_tower")

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        config = TowerConfig.from_dict(files.config["towers"][0])
        return TowerCheckpoint(config, files.tensors("towers.0.") if weights else None)
