"""Supervised training of a tower: classes of images, by a linear head on the pooled feature."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mmchat.constants import IGNORE_INDEX
from mmchat.data.collate import Batch, Collator
from mmchat.data.lengths import Measure
from mmchat.data.mixture import MixtureSource
from mmchat.data.records import Record, image_and_answer
from mmchat.data.samples import EncodedSample
from mmchat.errors import UserError
from mmchat.training.config import WEIGHTS, DistillationConfig, RunConfig
from mmchat.training.objectives.base import Counts, Objective, TrainingAugment, blank_image
from mmchat.training.objectives.distillation import soft_cross_entropy_sum
from mmchat.vision import preprocess
from mmchat.vision.classifier import ImageClassifier, classifier_from_config, load_classifier, save_classifier
from mmchat.vision.transforms.augmentation import random_view


class ClassifyObjective(Objective):
    """Cross-entropy with the label, and with a teacher's answers if there is one. A sample's only id is its class.

    Random views are a function of the seed, the step and the sample's number.
    """

    model: ImageClassifier

    def __init__(self, config: RunConfig, weights: bool = True) -> None:
        self.model = load_classifier(config.model, dtype=WEIGHTS) if weights else classifier_from_config(config.model)
        self.classes = {name: number for number, name in enumerate(self.model.config.classes)}
        self.label_smoothing = config.objective.label_smoothing or 0.0
        self.distillation = config.objective.distillation
        self.specs = [self.model.towers[0].spec]
        if config.objective.distillation is not None:
            self.teacher = _teacher(config.objective.distillation, self.model, weights)
            self.specs.append(self.teacher.towers[0].spec)
        self.collator = Collator(pad_id=0, specs=self.specs)
        self.augmentation = config.objective.augmentation
        self.augment = TrainingAugment(self._views, config.seed) if config.objective.augmentation else None

    def _views(self, images: list[Image.Image], draw: np.random.Generator) -> list[Image.Image]:
        return [random_view(image, self.collator.square, self.augmentation, draw) for image in images]

    def encode(
        self,
        record: Record,
        images: list[Image.Image],
        template: str | None,
        max_length: int,
        features: list[list[np.ndarray]] | None = None,
    ) -> EncodedSample:
        return EncodedSample([self.class_of(record)], None, [[preprocess(images[0], spec) for spec in self.specs]])

    def class_of(self, record: Record) -> int:
        """The class of a record's `label`, or of its caption if it has none.

        If only the teacher counts, an unknown label gives `IGNORE_INDEX`.

        Raises:
            UserError: there is not exactly one image and one label, or the model has no such class.
        """
        _, answer = image_and_answer(record, "label")
        label = str(record.extra.get("label", answer))
        if self.distillation is not None and self.distillation.weight == 1:
            return self.classes.get(label, IGNORE_INDEX)
        if label not in self.classes:
            raise UserError(f"label {label!r:.80} is none of the model's classes: {', '.join(self.classes):.300}")
        return self.classes[label]

    def measure(self, source: MixtureSource, max_length: int) -> Measure:
        return self._sizes

    def _sizes(self, record: Record) -> tuple[int, ...]:
        self.class_of(record)
        return 1, 0, 1, 1, sum(spec.tokens for spec in self.specs), 0

    def terms(self, counts: Counts) -> int:
        return counts.images

    def loss_sum(self, module: nn.Module, batch: Batch, images_on_any_rank: bool) -> torch.Tensor:
        logits, classes = self._logits(module, batch), batch.input_ids[:, 0]
        if not batch.images:
            return 0 * logits.sum()
        loss = F.cross_entropy(
            logits, classes, reduction="sum", ignore_index=IGNORE_INDEX, label_smoothing=self.label_smoothing
        )
        if self.distillation is None:
            return loss
        with torch.no_grad():
            answers = self.teacher.to(logits.device)(batch.pixel_values[1])
        soft = soft_cross_entropy_sum(logits, answers, self.distillation.temperature)
        return self.distillation.weight * soft + (1 - self.distillation.weight) * loss

    def count_correct(self, module: nn.Module, batch: Batch, device: torch.device) -> tuple[int, int]:
        """Counts images whose class is known."""
        batch = batch.to(device)
        answers, classes = self._logits(module, batch).argmax(dim=1), batch.input_ids[:, 0]
        known = int((classes != IGNORE_INDEX).sum()) if batch.images else 0
        return (int((answers == classes).sum()), known) if known else (0, 0)

    def _logits(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """float[B, classes]; of a blank image if no image could be used, so that all ranks run the same modules."""
        if batch.pixel_values is None:
            return module(blank_image(self.specs[0], batch.input_ids.device)).float()
        return module(batch.pixel_values[0]).float()

    def save(self, directory: Path) -> None:
        save_classifier(self.model, directory)


def _teacher(distillation: DistillationConfig, student: ImageClassifier, weights: bool) -> ImageClassifier:
    """The teacher in evaluation mode; its tower may see images at another size.

    Raises:
        UserError: it is not a classifier, or has other classes than the student.
    """
    source = distillation.teacher
    teacher = load_classifier(source, dtype=WEIGHTS) if weights else classifier_from_config(source)
    teacher = teacher.eval().requires_grad_(False)
    if teacher.config.classes != student.config.classes:
        raise UserError(
            f"the teacher {distillation.teacher} knows the classes {', '.join(teacher.config.classes):.200}, but the "
            f"model {', '.join(student.config.classes):.200}; both must have the same in the same order"
        )
    return teacher
