"""A tower alone as a model directory, which `load_tower` opens."""

from pathlib import Path
from typing import Any

import torch

from mmchat.model_kinds import TOWER
from mmchat.pretrained import ModelDirectory
from mmchat.vision.tower import VisionTower
from mmchat.vision.tower_model import TowerModel, TowerModelConfig


class BareTowerConfig(TowerModelConfig):
    """Config of a tower alone."""

    model_type = "mmchat_tower"

    def __init__(self, towers: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        # Not inherited: transformers generates a constructor for config classes that define none.
        super().__init__(towers, **kwargs)


class BareTower(TowerModel):
    """A tower alone. Its forward is the tower's: float[B, 3, H, W] -> patch features float[B, N, D]."""

    config_class = BareTowerConfig

    def __init__(self, config: BareTowerConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.towers[0](pixel_values).patches


DIRECTORY = ModelDirectory(TOWER, BareTower, tolerance=1e-4)


def save_tower(tower: VisionTower, directory: Path) -> None:
    """Write a tower as a model directory.

    Raises:
        RuntimeError: The written tower, reloaded, computes other patch features.
    """

    @torch.no_grad()
    def outputs(model: BareTower) -> list[torch.Tensor]:
        return [model(model.comparison_pixels())]

    DIRECTORY.save(BareTower.around(tower), [], directory, outputs)
