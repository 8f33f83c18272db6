"""Dual encoders (CLIP, SigLIP) and SimCLR: training objectives, pretrained models, search. Later stages take the
tower."""

from importlib import import_module

__all__ = [
    "DualEncoder",
    "DualEncoderConfig",
    "encode_caption",
    "info_nce",
    "load_clip",
    "load_tokenizer",
    "nt_xent",
    "pairwise_sigmoid",
]

_HOMES = {
    "DualEncoder": "mmchat.contrastive.dual_encoder",
    "DualEncoderConfig": "mmchat.contrastive.dual_encoder",
    "encode_caption": "mmchat.contrastive.captions",
    "info_nce": "mmchat.contrastive.losses",
    "load_clip": "mmchat.contrastive.directory",
    "load_tokenizer": "mmchat.contrastive.directory",
    "nt_xent": "mmchat.contrastive.losses",
    "pairwise_sigmoid": "mmchat.contrastive.losses",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
