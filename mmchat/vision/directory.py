"""A tower alone as a model directory, which `load_tower` opens."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mmchat.pretrained import load_strictly, save_verified
from mmchat.vision.loading import build_tower
from mmchat.vision.spec import TowerConfig
from mmchat.vision.tower import VisionTower

OUTPUT_TOLERANCE = 1e-4
"""Largest difference of patch features between a tower and its reloaded copy (fp32)."""


class BareTowerConfig(PreTrainedConfig):
    """towers: one `TowerConfig.to_dict()` (a list, as in every directory that holds towers)."""

    model_type = "mmchat_tower"

    def __init__(self, towers: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        self.towers = towers or []
        super().__init__(**kwargs)


class BareTower(PreTrainedModel):
    """A tower and nothing else; its forward is the tower's."""

    config_class = BareTowerConfig
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: BareTowerConfig) -> None:
        super().__init__(config)
        self.towers = nn.ModuleList(build_tower(TowerConfig.from_dict(tower)) for tower in config.towers)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float[B, 3, H, W] -> patch features float[B, N, D]."""
        return self.towers[0](pixel_values).patches


def save_tower(tower: VisionTower, directory: Path) -> None:
    """Raises RuntimeError where the written tower, read back, computes something else."""
    model = BareTower(BareTowerConfig([tower.config.to_dict()]))
    model.towers[0] = tower
    size, parameter = tower.spec.image_size, next(tower.parameters())
    pixels = torch.linspace(-2, 2, 3 * size * size, device=parameter.device, dtype=parameter.dtype)

    @torch.no_grad()
    def outputs(one: BareTower) -> list[torch.Tensor]:
        return [one(pixels.view(1, 3, size, size))]

    save_verified(model, [], directory, lambda path: load_strictly(BareTower, path), outputs, OUTPUT_TOLERANCE)
