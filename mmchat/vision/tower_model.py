"""What models around one tower share: a bare tower, a classifier, a dual encoder."""

from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mmchat.vision.loading import build_tower
from mmchat.vision.spec import TowerConfig
from mmchat.vision.tower import VisionTower


class TowerModelConfig(PreTrainedConfig):
    """Config of a model around one tower.

    Args:
        towers: One `TowerConfig.to_dict()`. A list, as in every directory that holds towers.
    """

    def __init__(self, towers: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        self.towers = towers or []
        super().__init__(**kwargs)


class TowerModel(PreTrainedModel):
    """A transformers model with one tower in `towers`. Subclasses add their parts, then call `post_init`."""

    config_class = TowerModelConfig
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: TowerModelConfig) -> None:
        super().__init__(config)
        self.towers = nn.ModuleList(build_tower(TowerConfig.from_dict(tower)) for tower in config.towers)

    @classmethod
    def around(cls, tower: VisionTower, *args: Any, **kwargs: Any) -> Self:
        """A new model that holds `tower` itself, not a copy. Other arguments are those of the config class."""
        model = cls(cls.config_class([tower.config.to_dict()], *args, **kwargs))
        model.towers[0] = tower
        return model

    def comparison_pixels(self) -> torch.Tensor:
        """A fixed input to compare a model with its reloaded copy: float[1, 3, S, S]."""
        side, parameter = self.towers[0].spec.image_size, next(self.towers[0].parameters())
        pixels = torch.linspace(-2, 2, 3 * side * side, device=parameter.device, dtype=parameter.dtype)
        return pixels.view(1, 3, side, side)
