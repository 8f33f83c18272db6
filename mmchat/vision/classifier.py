"""A tower with a linear head: what supervised training and fine-tuning grow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mmchat.errors import UserError
from mmchat.pretrained import check_model_type, load_strictly, save_verified
from mmchat.vision.loading import build_tower
from mmchat.vision.spec import TowerConfig, refuse_several_views
from mmchat.vision.tower import VisionTower

POOLS = ("pooled", "mean", "max")
OUTPUT_TOLERANCE = 1e-4
"""Largest difference of features and logits between a model and its reloaded copy (fp32)."""


class ImageClassifierConfig(PreTrainedConfig):
    """towers: one `TowerConfig.to_dict()` (a list, as in every directory that holds towers). classes: names, in the
    order of the logits. pool: the tower's own pooled output, or mean or maximum of its patches, channel by channel.
    """

    model_type = "mmchat_classifier"

    def __init__(
        self,
        towers: list[dict[str, Any]] | None = None,
        classes: Sequence[str] = (),
        pool: str = "pooled",
        **kwargs: Any,
    ) -> None:
        self.towers = towers or []
        self.classes = list(classes)
        self.pool = pool
        if pool not in POOLS:
            raise UserError(f"pool {pool!r} is unknown; expected one of {', '.join(POOLS)}")
        super().__init__(**kwargs)


class ImageClassifier(PreTrainedModel):
    """float[B, 3, H, W] -> logits float[B, classes]."""

    config_class = ImageClassifierConfig
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__(config)
        self.towers = nn.ModuleList(build_tower(TowerConfig.from_dict(tower)) for tower in config.towers)
        (tower,) = self.towers
        refuse_several_views(tower.spec, "a classifier")
        width = tower.pooled_dim if config.pool == "pooled" else tower.spec.dim
        self.head = nn.Linear(width, len(config.classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Towers and head are made as they begin: a head of zeros finds all classes equally likely."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixel_values))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the head reads: float[B, D]."""
        return pooled_features(self.towers[0], pixel_values, self.config.pool)


def pooled_features(tower: VisionTower, pixel_values: torch.Tensor, pool: str) -> torch.Tensor:
    """float[B, 3, H, W] -> float[B, D]; `pool` as in `ImageClassifierConfig`.

    Raises:
        UserError: the family has no pooled output.
    """
    if pool == "pooled":
        return tower(pixel_values, pooled=True).pooled
    patches = tower(pixel_values).patches
    return patches.mean(dim=1) if pool == "mean" else patches.amax(dim=1)


def init_classifier(tower: VisionTower, classes: Sequence[str], pool: str, out: Path) -> ImageClassifier:
    """Write the directory of a classifier around `tower`, with a new head: where a supervised run starts.

    Raises:
        UserError: there are fewer than two classes, or the tower has no such pooled output.
    """
    if len(classes) < 2:
        raise UserError(f"a classifier needs two classes or more, found {len(classes)}: {', '.join(classes)}")
    model = ImageClassifier(ImageClassifierConfig([tower.config.to_dict()], classes, pool))
    model.towers[0] = tower
    save_classifier(model, out)
    return model


def load_classifier(source: str | Path, dtype: str = "auto") -> ImageClassifier:
    """Open a classifier that mmchat saved; `dtype` as in `load_strictly`.

    Raises:
        UserError: the directory holds something else, or weights are missing or left over.
    """
    return load_strictly(ImageClassifier, _directory(source), dtype=dtype)


def classifier_from_config(source: str | Path) -> ImageClassifier:
    """As `load_classifier`, but no weight is read: they are made anew, where torch makes tensors at the moment."""
    return ImageClassifier(ImageClassifierConfig.from_pretrained(_directory(source)))


def save_classifier(model: ImageClassifier, directory: Path) -> None:
    """Raises RuntimeError where the written model, read back, computes something else."""
    size = model.towers[0].spec.image_size
    pixels = torch.linspace(-2, 2, 3 * size * size, device=model.device).view(1, 3, size, size)

    @torch.no_grad()
    def outputs(one: ImageClassifier) -> tuple[torch.Tensor, ...]:
        return one.features(pixels), one(pixels)  # a new head hides all differences

    save_verified(model, [], directory, load_classifier, outputs, OUTPUT_TOLERANCE)


def _directory(source: str | Path) -> Path:
    remedy = "make one around any tower with `mmchat vision init`"
    return check_model_type(source, ImageClassifierConfig.model_type, "a classifier", remedy)
