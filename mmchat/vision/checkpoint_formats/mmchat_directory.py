"""Directories that mmchat wrote: an assistant, a dual encoder, a classifier, a tower. The first tower is taken."""

from mmchat.vision.checkpoint_formats.base import TowerCheckpoint
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import TowerConfig


class MMChatDirectory:
    name = "mmchat's model directory"

    def recognises(self, source: WeightFiles) -> bool:
        return source.config.get("model_type") in ("mmchat", "mmchat_clip", "mmchat_classifier", "mmchat_tower")

    def open(self, source: WeightFiles, weights: bool) -> TowerCheckpoint:
        config = TowerConfig.from_dict(source.config["towers"][0])
        return TowerCheckpoint(config, source.tensors("towers.0.") if weights else None)
