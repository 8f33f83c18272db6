"""The interface of a projector kind."""

from math import isqrt
from typing import Protocol

from torch import nn

from mmchat.errors import UserError
from mmchat.vision import TowerSpec


class ProjectorKind(Protocol):
    """A small frozen dataclass. Its field, if it has one, is the number in the projector's name."""

    def slots(self, spec: TowerSpec) -> int:
        """Number of slots per view, known without weights.

        Raises:
            UserError: The projector cannot take the features of this tower.
        """

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        """A module float[B, spec.tokens, spec.dim] -> float[B, slots, out_dim]."""


def grid_side(spec: TowerSpec, divisor: int, what: str) -> int:
    """Side, in patches, of the square grid that a tower's features form.

    Args:
        spec: The tower.
        divisor: Must divide the side.
        what: The projector, for the message.

    Raises:
        UserError: The features do not form a square, or `divisor` does not divide its side.
    """
    if spec.native:
        raise UserError(
            f"{what} needs a square of patches, and with fit native images have any aspect ratio: use a projector "
            "that maps each patch separately (linear, mlp2x_gelu), or another fit"
        )
    side = isqrt(spec.tokens)
    if side**2 != spec.tokens or side % divisor:
        evenly = f" whose side is a multiple of {divisor}" if divisor > 1 else ""
        raise UserError(f"{what} needs a square of patches{evenly} and no class token; found {spec.tokens} features")
    return side
