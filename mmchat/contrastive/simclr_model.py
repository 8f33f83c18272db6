"""SimCLR (Chen et al. 2020, arXiv:2002.05709): a tower learns from images alone, by contrasting augmented views."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from mmchat.contrastive.config import SimCLRConfig
from mmchat.vision import VisionTower, refuse_several_views


class SimCLR(nn.Module):
    """A tower and a projection head, which is dropped after training.

    The head has no batch norm, so that an embedding does not depend on its batch and a step can be split over
    micro-batches and ranks.
    """

    def __init__(self, tower: VisionTower, config: SimCLRConfig) -> None:
        super().__init__()
        refuse_several_views(tower.spec, "SimCLR")
        self.towers = nn.ModuleList([tower])
        self.pool = config.pool
        width = tower.spec.dim
        widths = [*[width] * config.head_layers, config.head_dim]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.head = nn.Sequential(*layers[:-1])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float[B, 3, H, W] -> unit vectors float[B, P]."""
        patches = self.towers[0](pixel_values).patches
        pooled = patches.mean(dim=1) if self.pool == "mean" else patches.amax(dim=1)
        return F.normalize(self.head(pooled).float(), dim=-1)
