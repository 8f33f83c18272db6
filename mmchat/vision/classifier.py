"""A tower with a linear head: what supervised training and fine-tuning produce."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmchat.errors import UserError
from mmchat.model_kinds import CLASSIFIER
from mmchat.pretrained import ModelDirectory
from mmchat.vision.spec import refuse_several_views
from mmchat.vision.tower import VisionTower
from mmchat.vision.tower_model import TowerModel, TowerModelConfig

POOLS = ("pooled", "mean", "max")


class ImageClassifierConfig(TowerModelConfig):
    """Config of a classifier.

    Args:
        towers: One `TowerConfig.to_dict()`.
        classes: Class names in the order of the logits.
        pool: "pooled" is the tower's own pooled output; "mean" or "max" pools its patches, channel by channel.
    """

    model_type = "mmchat_classifier"

    def __init__(
        self,
        towers: list[dict[str, Any]] | None = None,
        classes: Sequence[str] = (),
        pool: str = "pooled",
        **kwargs: Any,
    ) -> None:
        self.classes = list(classes)
        self.pool = pool
        if pool not in POOLS:
            raise UserError(f"pool {pool!r} is unknown; expected one of {', '.join(POOLS)}")
        super().__init__(towers, **kwargs)


class ImageClassifier(TowerModel):
    """A tower with a linear head: float[B, 3, H, W] -> logits float[B, classes]."""

    config_class = ImageClassifierConfig

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__(config)
        (tower,) = self.towers
        refuse_several_views(tower.spec, "a classifier")
        width = tower.pooled_dim if config.pool == "pooled" else tower.spec.dim
        self.head = nn.Linear(width, len(config.classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the constructors initialise towers and head. A zero head makes all classes equally likely."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixel_values))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The input of the head: float[B, 3, H, W] -> float[B, D]."""
        return pooled_features(self.towers[0], pixel_values, self.config.pool)


DIRECTORY = ModelDirectory(CLASSIFIER, ImageClassifier, tolerance=1e-4)


def pooled_features(tower: VisionTower, pixel_values: torch.Tensor, pool: str) -> torch.Tensor:
    """One feature vector per image.

    Args:
        tower: The tower.
        pixel_values: float[B, 3, H, W].
        pool: See `ImageClassifierConfig`.

    Returns:
        float[B, D].

    Raises:
        UserError: `pool` is "pooled" and the family has no pooled output.
    """
    if pool == "pooled":
        return tower(pixel_values, pooled=True).pooled
    patches = tower(pixel_values).patches
    return patches.mean(dim=1) if pool == "mean" else patches.amax(dim=1)


def init_classifier(tower: VisionTower, classes: Sequence[str], pool: str, out: Path) -> ImageClassifier:
    """Write the directory of a classifier with a new head around `tower`: the start of a supervised run.

    Args:
        tower: The tower; random or pretrained.
        classes: Class names, two or more.
        pool: See `ImageClassifierConfig`.
        out: The directory.

    Raises:
        UserError: There are fewer than two classes, or the tower has no pooled output.
    """
    if len(classes) < 2:
        raise UserError(f"a classifier needs two classes or more, found {len(classes)}: {', '.join(classes)}")
    model = ImageClassifier.around(tower, classes, pool)
    save_classifier(model, out)
    return model


def load_classifier(source: str | Path, dtype: str = "auto") -> ImageClassifier:
    """Open a classifier that mmchat wrote; see `ModelDirectory.load`."""
    return DIRECTORY.load(source, dtype)


def classifier_from_config(source: str | Path) -> ImageClassifier:
    """Build a classifier without reading weights; see `ModelDirectory.from_config`."""
    return DIRECTORY.from_config(source)


def save_classifier(model: ImageClassifier, directory: Path) -> None:
    """Write a classifier as a model directory.

    Raises:
        RuntimeError: The written model, reloaded, computes something else.
    """

    @torch.no_grad()
    def outputs(classifier: ImageClassifier) -> tuple[torch.Tensor, ...]:
        pixels = classifier.comparison_pixels()
        return classifier.features(pixels), classifier(pixels)  # logits of a new head are 0 whatever the features are

    DIRECTORY.save(model, [], directory, outputs)
