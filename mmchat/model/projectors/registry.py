"""Registry of projectors: name -> kind."""

import re
from collections.abc import Callable
from functools import partial

from mmchat.errors import UserError
from mmchat.model.projectors.mlp import MLP, Linear
from mmchat.model.projectors.pixel_shuffle import PixelShuffleLinear, PixelShuffleMLP
from mmchat.model.projectors.pooling import AveragePoolMLP
from mmchat.model.projectors.projector import ProjectorKind
from mmchat.model.projectors.resampler import ResamplerKind

PROJECTORS: dict[str, Callable[..., ProjectorKind]] = {
    "linear": Linear,
    "mlp{n}x_gelu": MLP,
    "pixel_shuffle": PixelShuffleMLP,
    "pixel_shuffle_2d": partial(PixelShuffleMLP, positions=True),
    "pixel_shuffle{n}_linear": PixelShuffleLinear,
    "avg_pool{n}_mlp2x_gelu": AveragePoolMLP,
    "resampler{n}": ResamplerKind,
}
"""Name -> kind. {n} is a number, which becomes the kind's field."""


def projector_kind(name: str) -> ProjectorKind:
    """The projector kind of a name such as `mlp2x_gelu`.

    Raises:
        UserError: The name is unknown.
    """
    for pattern, kind in PROJECTORS.items():
        if found := re.fullmatch(pattern.replace("{n}", r"([1-9]\d*)"), name):
            return kind(*map(int, found.groups()))
    raise UserError(f"projector {name!r} is unknown; known: {', '.join(PROJECTORS)}, where {{n}} is 1 or more")
