"""What a run optimizes. The loop sees a sum of losses and the number of their terms, and nothing else of the model.

An objective also opens the model directory that a run starts from, encodes records, writes the finished model and
proves that it reads back.
"""

from abc import ABC, abstractmethod
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
from mmchat.data.feature_cache import ImageFeatures
from mmchat.data.lengths import LengthIndex, Measure, measured_lengths
from mmchat.data.mixture import MixtureSource
from mmchat.data.records import Record
from mmchat.data.samples import EncodedSample
from mmchat.model.processor import MMChatProcessor
from mmchat.training.objectives.gradient_cache import losses_by_cache
from mmchat.vision import TowerSpec, VisionTower
from mmchat.vision.classifier import ImageClassifier


class Counts(Protocol):
    """What loss terms are counted in: a batch, a planned one, or a whole source."""

    @property
    def images(self) -> int: ...

    @property
    def supervised(self) -> int: ...


class Objective(ABC):
    """One kind of training.

    A subclass is made from a run config; with `weights=False` it makes a model of the same shapes and reads no weights.

    Attributes:
        model: what is trained.
        collator: makes batches of encoded samples.
        processor: of an assistant; None for other kinds.
        without_terms: what data without loss terms lacks, for messages.
        features: where features of frozen towers are read from; None if the towers run.
        teacher: a frozen model that runs in every step as well, whole on every rank; None without distillation.
        augment: random changes of images before `encode`; None if there are none.
    """

    model: nn.Module
    collator: Collator
    processor: MMChatProcessor | None = None
    without_terms: str = "no record has an image"
    features: ImageFeatures | None = None
    teacher: ImageClassifier | None = None
    augment: Augment | None = None

    @abstractmethod
    def encode(
        self,
        record: Record,
        images: list[Image.Image] | list[list[Image.Image]],
        template: str | None,
        max_length: int,
        features: list[list[np.ndarray]] | None = None,
    ) -> EncodedSample:
        """Ids, labels and pixels of a record.

        Args:
            images: decoded, and changed by `augment`.
            template: of the record's source; None: the model's own.
            max_length: tokens of a conversation at most; the rest is cut.
            features: used instead of pixels, in the layout of `EncodedSample`.
        """

    @property
    def packable(self) -> bool:
        """Whether the model tells samples apart that are concatenated in one row."""
        return False

    @abstractmethod
    def measure(self, source: MixtureSource, max_length: int) -> Measure:
        """How the records of a source are measured, without reading an image."""

    def lengths(self, source: MixtureSource, max_length: int) -> LengthIndex:
        """Lengths of all records of a source, by `measure`; an unusable one has 0 tokens."""
        return measured_lengths(source, self.measure(source, max_length))

    @abstractmethod
    def terms(self, counts: Counts) -> int:
        """The number of losses that `loss_sum` adds up; their global number divides the gradient."""

    @abstractmethod
    def loss_sum(self, module: nn.Module, batch: Batch, images_on_any_rank: bool) -> torch.Tensor:
        """The loss that one forward adds to a step.

        Args:
            module: the engine, or the model itself.
            images_on_any_rank: whether any rank has an image in this micro-batch.
        """

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write the finished model, reload it strictly and compare what the two compute."""

    def losses(
        self, module: nn.Module, batches: list[Batch], images_on_any_rank: list[bool], device: torch.device
    ) -> Iterator[torch.Tensor]:
        """Losses of a step's micro-batches, one at a time; run backward before asking for the next."""
        for batch, on_any_rank in zip(batches, images_on_any_rank, strict=True):
            yield self.loss_sum(module, batch.to(device), on_any_rank)

    def count_correct(self, module: nn.Module, batch: Batch, device: torch.device) -> tuple[int, int]:
        """Correct answers in a held-out micro-batch, and answers; (0, 0) if answers cannot be right."""
        return 0, 0

    def towers_to_cache(self) -> list[VisionTower]:
        """Frozen towers whose features a feature cache could hold; none if images differ from step to step."""
        return []


class PairwiseObjective(Objective):
    """An objective whose loss compares all samples of a step, on all ranks and in all micro-batches."""

    @abstractmethod
    def embed(self, module: nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Pairs of unit vectors float[n, 2, P] of the batch's n usable samples, and scalars shared by all batches."""

    @abstractmethod
    def pair_loss_sum(self, pairs: torch.Tensor, *scalars: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of this rank's pairs."""

    def loss_sum(self, module: nn.Module, batch: Batch, images_on_any_rank: bool) -> torch.Tensor:
        return self.pair_loss_sum(*self.embed(module, batch))

    def losses(
        self, module: nn.Module, batches: list[Batch], images_on_any_rank: list[bool], device: torch.device
    ) -> Iterator[torch.Tensor]:
        """With several micro-batches, losses whose gradients add up to those of the step's loss (`gradient_cache`)."""
        if len(batches) == 1:
            yield from super().losses(module, batches, images_on_any_rank, device)
        else:
            yield from losses_by_cache(lambda batch: self.embed(module, batch.to(device)), self.pair_loss_sum, batches)


@dataclass(frozen=True)
class TrainingAugment:
    """Changes images of training samples; held-out images stay as they are.

    Args:
        change: images of a record and a generator -> changed images. The generator depends on the seed, the
            sample's number and the step only.
    """

    change: Callable[[list[Image.Image], np.random.Generator], list]
    seed: int

    def __call__(
        self, images: list[Image.Image], number: int, step: int | None
    ) -> list[Image.Image] | list[list[Image.Image]]:
        if step is None:
            return images
        return self.change(images, np.random.default_rng([self.seed, number, step]))


def blank_image(spec: TowerSpec, device: torch.device, views: int = 1) -> torch.Tensor:
    """float[views, 3, H, W] of zeros, for micro-batches without a usable image: all ranks must run the same modules."""
    return torch.zeros(views, 3, spec.view_size, spec.view_size, device=device)
