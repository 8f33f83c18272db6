"""The names that a config calls projectors by."""

import re
from collections.abc import Callable
from functools import partial

from mmchat.errors import UserError
from mmchat.model.projectors.mlp import MLP, Linear
from mmchat.model.projectors.pixel_shuffle import PixelShuffleMLP
from mmchat.model.projectors.pooling import AveragePoolMLP
from mmchat.model.projectors.projector import ProjectorKind
from mmchat.model.projectors.resampler import ResamplerKind

PROJECTORS: dict[str, Callable[..., ProjectorKind]] = {
    "linear": Linear,
    "mlp{n}x_gelu": MLP,
    "pixel_shuffle": PixelShuffleMLP,
    "pixel_shuffle_2d": partial(PixelShuffleMLP, positions=True),
    "avg_pool{n}_mlp2x_gelu": AveragePoolMLP,
    "resampler{n}": ResamplerKind,
}
"""Name -> kind; {n} stands for a number, which the kind is made of."""


def projector_kind(name: str) -> ProjectorKind:
    """Raises UserError for an unknown name."""
    for pattern, kind in PROJECTORS.items():
        if found := re.fullmatch(pattern.replace("{n}", r"([1-9]\d*)"), name):
            return kind(*map(int, found.groups()))
    raise UserError(f"projector {name!r} is unknown; known: {', '.join(PROJECTORS)}, where {{n}} is 1 or more")
