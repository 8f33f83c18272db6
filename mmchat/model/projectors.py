"""From a tower's patch features to the slots' embeddings, chosen by exact name. Slots are counted without weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import nn

from mmchat.errors import UserError
from mmchat.vision import TowerSpec

SHUFFLE = 2
"""Side of the square of patches that `pixel_shuffle` turns into one slot."""


def linear(in_dim: int, out_dim: int) -> nn.Module:
    """One matrix (LLaVA's first version; Vary). float[..., in_dim] -> float[..., out_dim]"""
    return nn.Linear(in_dim, out_dim)


def mlp2x_gelu(in_dim: int, out_dim: int) -> nn.Module:
    """Linear, GELU, Linear (LLaVA-1.5, arXiv:2310.03744). float[..., in_dim] -> float[..., out_dim]"""
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))


def pixel_shuffle(in_dim: int, out_dim: int) -> nn.Module:
    """Four neighbouring patches side by side, then norm and `mlp2x_gelu` (InternVL-1.5, arXiv:2404.16821).

    float[B, N, in_dim] -> float[B, N / 4, out_dim]; N must be an even square, so no class token.
    """
    merged = in_dim * SHUFFLE**2
    return nn.Sequential(PixelShuffle(), nn.LayerNorm(merged), *mlp2x_gelu(merged, out_dim))


class PixelShuffle(nn.Module):
    """float[B, H * W, D] -> float[B, H/2 * W/2, 4 * D], each square of 2x2 patches as one, in reading order."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        batch, count, dim = patches.shape
        side = isqrt(count)
        small = side // SHUFFLE
        squares = patches.view(batch, small, SHUFFLE, small, SHUFFLE, dim).transpose(2, 3)
        return squares.reshape(batch, small * small, SHUFFLE**2 * dim)


@dataclass(frozen=True)
class ProjectorKind:
    """build: (in_dim, out_dim) -> module. patches_per_slot: how many features it makes one of."""

    build: Callable[[int, int], nn.Module]
    patches_per_slot: int = 1


PROJECTORS: dict[str, ProjectorKind] = {
    "linear": ProjectorKind(linear),
    "mlp2x_gelu": ProjectorKind(mlp2x_gelu),
    "pixel_shuffle": ProjectorKind(pixel_shuffle, patches_per_slot=SHUFFLE**2),
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
