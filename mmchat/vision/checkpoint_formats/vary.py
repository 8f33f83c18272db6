"""Vary's vision vocabulary (Ucas-HaoranWei/Vary): alone, or inside an assistant, wherever that keeps it."""

from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, part_of
from mmchat.vision.checkpoint_formats.sam import encoder_config, holds_encoder, tower_key
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, TowerConfig

PREPROCESSING = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "bilinear", "squash")

PLACES: dict[str, tuple[str, ...]] = {
    "model.vision_tower_2.": ("model.decoder.", "model.mm_projector.", "lm_head."),
    "model.vision_tower.": ("model.decoder.", "model.mm_projector.", "lm_head."),
    "visual_encoder.": ("model.decoder.", "opt_model.", "opt_proj.", "lm_head."),
    "transformer.vision_tower_high.": (
        *("transformer.wte.", "transformer.h.", "transformer.ln_f.", "transformer.vision_tower."),
        *("transformer.mm_projector.", "transformer.mm_projector_vary.", "lm_head."),
    ),
    "": (),
}
"""Where its keys begin (Vary-OPT, -toy, -tiny, -Qwen; the encoder alone) -> how the keys of other parts begin there."""

_COMPRESSOR = {"net_2.weight": "compressor.0.weight", "net_3.weight": "compressor.1.weight"}


class Vary:
    name = "Vary's vision vocabulary (ImageEncoderViT with net_2 and net_3)"

    def recognises(self, source: WeightFiles) -> bool:
        return place_of(source) is not None

    def open(self, source: WeightFiles, weights: bool) -> TowerCheckpoint:
        prefix = place_of(source)
        config = TowerConfig("vary_sam", encoder_config(source, prefix), preprocessing=PREPROCESSING)
        if not weights:
            return TowerCheckpoint(config, None)
        own = part_of(source, prefix, PLACES[prefix])
        return TowerCheckpoint(config, {_tower_key(key): tensor for key, tensor in own.items()})


def place_of(source: WeightFiles) -> str | None:
    """How the keys of its encoder begin; None where there is none of Vary's."""
    found = (one for one in PLACES if holds_encoder(source, one) and f"{one}net_2.weight" in source.shapes)
    return next(found, None)


def _tower_key(key: str) -> str:
    return _COMPRESSOR.get(key) or tower_key(key)
