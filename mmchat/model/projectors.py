"""From a tower's patch features to the slots' embeddings, chosen by exact name. Slots are counted without weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import nn

from mmchat.errors import UserError
from mmchat.vision import TowerSpec

SHUFFLE = 2
"""Side of the square of patches that `pixel_shuffle` turns into one slot."""
POSITION_SCALE = 0.3
"""Amplitude of the first positions of `pixel_shuffle_2d`, beside features of unit variance."""


def linear(spec: TowerSpec, out_dim: int) -> nn.Module:
    """One matrix (LLaVA's first version; Vary). float[..., dim] -> float[..., out_dim]"""
    return nn.Linear(spec.dim, out_dim)


def mlp2x_gelu(spec: TowerSpec, out_dim: int) -> nn.Module:
    """Linear, GELU, Linear (LLaVA-1.5, arXiv:2310.03744). float[..., dim] -> float[..., out_dim]"""
    return _mlp(spec.dim, out_dim)


def pixel_shuffle(spec: TowerSpec, out_dim: int) -> nn.Module:
    """Four neighbouring patches side by side, then norm and `mlp2x_gelu` (InternVL-1.5, arXiv:2404.16821).

    float[B, N, dim] -> float[B, N / 4, out_dim]; N must be an even square, so no class token.
    """
    merged = spec.dim * SHUFFLE**2
    return nn.Sequential(PixelShuffle(), nn.LayerNorm(merged), *_mlp(merged, out_dim))


def pixel_shuffle_2d(spec: TowerSpec, out_dim: int) -> nn.Module:
    """`pixel_shuffle` with learned positions after the norm, for towers whose features do not tell where they are."""
    merged = spec.dim * SHUFFLE**2
    positions = Positions2D(isqrt(spec.tokens) // SHUFFLE, merged)
    return nn.Sequential(PixelShuffle(), nn.LayerNorm(merged), positions, *_mlp(merged, out_dim))


def _mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))


class PixelShuffle(nn.Module):
    """float[B, H * W, D] -> float[B, H/2 * W/2, 4 * D], each square of 2x2 patches as one, in reading order."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        batch, count, dim = patches.shape
        side = isqrt(count)
        small = side // SHUFFLE
        squares = patches.view(batch, small, SHUFFLE, small, SHUFFLE, dim).transpose(2, 3)
        return squares.reshape(batch, small * small, SHUFFLE**2 * dim)


class Positions2D(nn.Module):
    """float[B, side * side, dim], in reading order, plus a learned vector for each place.

    They start as sines and cosines (Vaswani et al. 2017, arXiv:1706.03762) of column and row, a quarter of the
    channels each, from a wavelength of 4 places to one of 4 sides: along the long ones left and right, above and
    below are nearly straight lines.
    """

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        rates = np.pi / 2 / side ** np.linspace(0, 1, dim // 4)
        angles = np.arange(side)[:, None] * rates
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        columns, rows = (np.broadcast_to(w, (side, side, dim // 2)) for w in (waves[None, :], waves[:, None]))
        places = np.concatenate([columns, rows], axis=2).reshape(side * side, dim)
        self.places = nn.Parameter(torch.empty(side * side, dim))
        with torch.no_grad():
            self.places.copy_(torch.from_numpy(POSITION_SCALE * places))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.places


@dataclass(frozen=True)
class ProjectorKind:
    """build: (the tower's spec, out_dim) -> module. patches_per_slot: how many features it makes one of."""

    build: Callable[[TowerSpec, int], nn.Module]
    patches_per_slot: int = 1


PROJECTORS: dict[str, ProjectorKind] = {
    "linear": ProjectorKind(linear),
    "mlp2x_gelu": ProjectorKind(mlp2x_gelu),
    "pixel_shuffle": ProjectorKind(pixel_shuffle, patches_per_slot=SHUFFLE**2),
    "pixel_shuffle_2d": ProjectorKind(pixel_shuffle_2d, patches_per_slot=SHUFFLE**2),
}


def projector_kind(name: str) -> ProjectorKind:
    """Raises UserError for an unknown name."""
    if name not in PROJECTORS:
        raise UserError(f"projector {name!r} is unknown; known: {', '.join(PROJECTORS)}")
    return PROJECTORS[name]


def slots_per_tower(specs: Sequence[TowerSpec], projectors: Sequence[str]) -> list[int]:
    """Slots that each tower's features take.

    Raises:
        UserError: a projector cannot merge the tower's patches evenly.
    """
    slots = []
    for spec, name in zip(specs, projectors, strict=True):
        merged = projector_kind(name).patches_per_slot
        if merged > 1 and (isqrt(spec.tokens) ** 2 != spec.tokens or isqrt(spec.tokens) % isqrt(merged)):
            raise UserError(
                f"projector {name} merges squares of {merged} patches, which {spec.tokens} features do not fill; "
                "it needs an even number of patches on each side and no class token"
            )
        slots.append(spec.tokens // merged)
    return slots


def slots_per_image(specs: Sequence[TowerSpec], projectors: Sequence[str], fusion: str) -> int:
    """Slots of one image: the towers share them when fused on channels, and follow each other on the sequence.

    Raises:
        UserError: towers fused on channels give different numbers.
    """
    slots = slots_per_tower(specs, projectors)
    if fusion == "sequence" or not slots:
        return sum(slots)
    if len(set(slots)) > 1:
        raise UserError(f"towers fused on channels must give equally many tokens, found {slots}; use sequence")
    return slots[0]
