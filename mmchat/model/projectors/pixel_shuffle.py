"""Pixel shuffle: neighbouring patches are concatenated on channels, which gives fewer slots without loss."""

from dataclasses import dataclass
from math import isqrt

import torch
from torch import nn

from mmchat.model.projectors.mlp import mlp_layers
from mmchat.model.projectors.positions import Positions2D
from mmchat.model.projectors.projector import grid_side
from mmchat.vision import TowerSpec

SHUFFLE = 2
"""Side of the square of patches that becomes one slot in InternVL."""


@dataclass(frozen=True)
class PixelShuffleMLP:
    """Pixel shuffle of 2x2 patches, layer norm, two-layer MLP (InternVL-1.5, arXiv:2404.16821)."""

    positions: bool = False
    """Add learned positions after the norm, for towers whose features do not encode their position."""

    def slots(self, spec: TowerSpec) -> int:
        return (grid_side(spec, SHUFFLE, "pixel shuffle") // SHUFFLE) ** 2

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        merged = spec.dim * SHUFFLE**2
        layers = [Positions2D(isqrt(self.slots(spec)), merged)] if self.positions else []
        return nn.Sequential(PixelShuffle(), nn.LayerNorm(merged), *layers, *mlp_layers(merged, out_dim))


@dataclass(frozen=True)
class PixelShuffleLinear:
    """Pixel shuffle of `factor` x `factor` patches and one matrix (Idefics3, arXiv:2408.12637; nanoVLM)."""

    factor: int

    def slots(self, spec: TowerSpec) -> int:
        return (grid_side(spec, self.factor, "pixel shuffle") // self.factor) ** 2

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        return nn.Sequential(PixelShuffle(self.factor), nn.Linear(spec.dim * self.factor**2, out_dim, bias=False))


class PixelShuffle(nn.Module):
    """float[B, H * W, D] -> float[B, H/n * W/n, n * n * D]: each square of n x n patches becomes one, in reading order.

    The order is that of InternVL (`ps_version` v2) and of Idefics3.
    """

    def __init__(self, side: int = SHUFFLE) -> None:
        super().__init__()
        self.side = side

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        batch, count, dim = patches.shape
        small = isqrt(count) // self.side
        squares = patches.view(batch, small, self.side, small, self.side, dim).transpose(2, 3)
        return squares.reshape(batch, small * small, self.side**2 * dim)
