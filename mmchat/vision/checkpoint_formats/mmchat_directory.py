"""Directories that mmchat wrote: an assistant, a dual encoder, a classifier, a tower. The first tower is taken."""

from mmchat.vision.checkpoint_formats.base import Found
from mmchat.vision.checkpoint_formats.weight_files import Source
from mmchat.vision.spec import TowerConfig


class Own:
    name = "mmchat's model directory"

    def recognises(self, source: Source) -> bool:
        return source.config.get("model_type") in ("mmchat", "mmchat_clip", "mmchat_classifier", "mmchat_tower")

    def open(self, source: Source, weights: bool) -> Found:
        config = TowerConfig.from_dict(source.config["towers"][0])
        return Found(config, source.tensors("towers.0.") if weights else None)
