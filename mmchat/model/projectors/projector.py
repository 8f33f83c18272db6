"""What every kind of projector answers."""

from math import isqrt
from typing import Protocol

from torch import nn

from mmchat.errors import UserError
from mmchat.vision import TowerSpec


class ProjectorKind(Protocol):
    """A small frozen dataclass; its field, if it has one, is the number in the projector's name."""

    def slots(self, spec: TowerSpec) -> int:
        """How many slots the tower's features take. Raises UserError where the projector cannot take them."""

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        """float[B, spec.tokens, spec.dim] -> float[B, slots, out_dim]"""


def grid_side(spec: TowerSpec, divisor: int, what: str) -> int:
    """Patches on a side of the square that the features fill.

    Raises:
        UserError: they fill none, or `divisor` does not divide its side; `what` begins the message.
    """
    if spec.native:
        raise UserError(
            f"{what} needs a square of patches, and with fit native images have any aspect ratio: take a projector "
            "that leaves each patch by itself (linear, mlp2x_gelu), or another fit"
        )
    side = isqrt(spec.tokens)
    if side**2 != spec.tokens or side % divisor:
        evenly = f" whose side is a multiple of {divisor}" if divisor > 1 else ""
        raise UserError(f"{what} needs a square of patches{evenly} and no class token; found {spec.tokens} features")
    return side
