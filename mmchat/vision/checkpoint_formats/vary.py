"""Vary's vision vocabulary (Ucas-HaoranWei/Vary): the encoder alone, or inside an assistant."""

from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, tensors_below
from mmchat.vision.checkpoint_formats.sam import encoder_config, holds_encoder, tower_key
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, TowerConfig

PREPROCESSING = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "bilinear", "squash")

ENCODER_PREFIXES: dict[str, tuple[str, ...]] = {
    "model.vision_tower_2.": ("model.decoder.", "model.mm_projector.", "lm_head."),
    "model.vision_tower.": ("model.decoder.", "model.mm_projector.", "lm_head."),
    "visual_encoder.": ("model.decoder.", "opt_model.", "opt_proj.", "lm_head."),
    "transformer.vision_tower_high.": (
        *("transformer.wte.", "transformer.h.", "transformer.ln_f.", "transformer.vision_tower."),
        *("transformer.mm_projector.", "transformer.mm_projector_vary.", "lm_head."),
    ),
    "": (),
}
"""Prefix of the encoder's keys (Vary-OPT, -toy, -tiny, -Qwen; the encoder alone) -> prefixes of the other parts."""

_COMPRESSOR = {"net_2.weight": "compressor.0.weight", "net_3.weight": "compressor.1.weight"}


class Vary:
    name = "Vary's vision vocabulary (ImageEncoderViT with net_2 and net_3)"

    def recognises(self, files: WeightFiles) -> bool:
        return encoder_prefix(files) is not None

    def open(self, files: WeightFiles, weights: bool) -> TowerCheckpoint:
        prefix = encoder_prefix(files)
        config = TowerConfig("vary_sam", encoder_config(files, prefix), preprocessing=PREPROCESSING)
        if not weights:
            return TowerCheckpoint(config, None)
        encoder = tensors_below(files, prefix, ENCODER_PREFIXES[prefix])
        return TowerCheckpoint(config, {_tower_key(key): tensor for key, tensor in encoder.items()})


def encoder_prefix(files: WeightFiles) -> str | None:
    """Prefix of the keys of Vary's encoder; None if the files hold none."""
    for prefix in ENCODER_PREFIXES:
        if holds_encoder(files, prefix) and f"{prefix}net_2.weight" in files.shapes:
            return prefix
    return None


def _tower_key(key: str) -> str:
    return _COMPRESSOR.get(key) or tower_key(key)
