"""What a run optimises. The loop sees a sum of losses and how many terms it has; nothing else of the model.

An objective also knows how to open the model directory that a run starts from, how to encode a record,
and how to write the finished model and prove that it reads back.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

from mmchat.data.collate import Batch, Collator
from mmchat.data.dataset import Augment
from mmchat.data.feature_store import ImageFeatures
from mmchat.data.records import Record
from mmchat.data.samples import EncodedSample
from mmchat.training.objectives.gradient_cache import losses_by_cache
from mmchat.vision import TowerSpec


class Objective(Protocol):
    """Made of a run's config. weights: False makes new ones of the same shapes and reads none."""

    model: nn.Module
    collator: Collator
    features: ImageFeatures | None
    """Where the towers' features are read from; None where the towers run."""
    augment: Augment | None = None
    """What it makes of images at random before `encode` sees them."""

    def encode(
        self,
        record: Record,
        images: list[Image.Image] | list[list[Image.Image]],
        template: str | None,
        features: list[list[np.ndarray]] | None = None,
    ) -> EncodedSample:
        """Ids, labels and pixels of a record; `template` is its source's own, if it has one.

        images: as `augment` left them. features: instead of these, as `EncodedSample` has them.
        """

    def terms(self, batch: Batch) -> int:
        """How many losses `loss_sum` adds up; their global number divides the gradient."""

    def loss_sum(self, module: nn.Module, batch: Batch, images_anywhere: bool) -> torch.Tensor:
        """What a single forward adds to the loss of a step. images_anywhere: on any rank, in this micro-batch."""

    def losses(
        self, module: nn.Module, batches: list[Batch], images_anywhere: list[bool], device: torch.device
    ) -> Iterator[torch.Tensor]:
        """Losses of a step's micro-batches, one after another: whoever asks for the next is done with the one before.

        Here they do not know of each other.
        """
        for batch, anywhere in zip(batches, images_anywhere, strict=True):
            yield self.loss_sum(module, batch.to(device), anywhere)

    def right(self, module: nn.Module, batch: Batch, device: torch.device) -> tuple[int, int]:
        """How many answers to a held-out micro-batch are right, and of how many; none where answers cannot be right."""
        return 0, 0

    def save(self, directory: Path) -> None:
        """Write the finished model, reload it strictly and compare what the two compute."""


@dataclass(frozen=True)
class InSteps:
    """An `Augment` that leaves held-out images as they are, and all of them where `change` is None.

    change: images of a record and a generator, which hangs on the seed, the sample's number and the step alone.
    """

    change: Callable[[list[Image.Image], np.random.Generator], list] | None
    seed: int

    def __call__(
        self, images: list[Image.Image], number: int, step: int | None
    ) -> list[Image.Image] | list[list[Image.Image]]:
        if self.change is None or step is None:
            return images
        return self.change(images, np.random.default_rng([self.seed, number, step]))


def blank(spec: TowerSpec, device: torch.device, views: int = 1) -> torch.Tensor:
    """float[views, 3, H, W] of zeros: what a tower runs on where nothing of a micro-batch could be used, so that all
    ranks run the same modules."""
    return torch.zeros(views, 3, spec.view_size, spec.view_size, device=device)


class ComparingObjective(Objective):
    """One whose loss compares all samples of a step, on all ranks and in all micro-batches."""

    def embed(self, module: nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Pairs of unit vectors float[n, 2, P] of the batch's n usable samples, and scalars that all batches share."""

    def of_pairs(self, pairs: torch.Tensor, *scalars: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of this rank's pairs."""

    def loss_sum(self, module: nn.Module, batch: Batch, images_anywhere: bool) -> torch.Tensor:
        return self.of_pairs(*self.embed(module, batch))

    def losses(
        self, module: nn.Module, batches: list[Batch], images_anywhere: list[bool], device: torch.device
    ) -> Iterator[torch.Tensor]:
        """Those of the step as a whole (`gradient_cache`)."""
        if len(batches) == 1:
            yield from super().losses(module, batches, images_anywhere, device)
        else:
            yield from losses_by_cache(lambda batch: self.embed(module, batch.to(device)), self.of_pairs, batches)
