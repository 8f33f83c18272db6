"""Average pooling of neighbouring patches: fewer slots without parameters, but detail is lost."""

from dataclasses import dataclass
from math import isqrt

import torch
from torch import nn
from torch.nn import functional as F

from mmchat.model.projectors.mlp import mlp_layers
from mmchat.model.projectors.projector import grid_side
from mmchat.vision import TowerSpec


@dataclass(frozen=True)
class AveragePoolMLP:
    """Average pooling over `window` x `window` patches, then a two-layer MLP (as in DeCo, arXiv:2405.20985)."""

    window: int

    def slots(self, spec: TowerSpec) -> int:
        return (grid_side(spec, self.window, f"average pooling by {self.window}") // self.window) ** 2

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        return nn.Sequential(AveragePool(self.window), *mlp_layers(spec.dim, out_dim))


class AveragePool(nn.Module):
    """float[B, H * W, D] -> float[B, H/window * W/window, D], in reading order."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        grid = patches.transpose(1, 2).unflatten(2, (isqrt(patches.shape[1]), -1))
        return F.avg_pool2d(grid, self.window).flatten(2).transpose(1, 2)
