"""Zero-shot classification: each class is described in words, and an image gets the class with the nearest text.

Radford et al. 2021 (arXiv:2103.00020), section 3.1: the embedding of a class is the mean of its prompts' unit vectors,
normalised again (3.1.4). Its probability is the softmax over classes of the scaled similarities.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from mmchat.contrastive.embedding import Embedder
from mmchat.contrastive.prompts import PROMPTS, prompted
from mmchat.data.image_refs import ImageRef
from mmchat.data.labelled_images import LabelledImages
from mmchat.evaluation.metrics import (
    Interval,
    bootstrap_interval,
    calibration_error,
    flatten_intervals,
    mean_per_class,
    ranks_of_targets,
    share_with_interval,
)
from mmchat.progress import progress_bar


def class_embeddings(embedder: Embedder, classes: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
    """The embedding of each class: the normalised mean over its prompts.

    Args:
        classes: what the classes are called.
        prompts: each holds `{}` once, where the class name goes.

    Returns:
        float32[C, P] of unit length.

    Raises:
        UserError: a text is too long for the model.
    """
    means = embedder.texts(prompted(classes, prompts)).reshape(len(classes), len(prompts), -1).mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def probabilities(images: np.ndarray, classes: np.ndarray, scale: float) -> np.ndarray:
    """Class probabilities: the softmax of scaled similarities.

    Args:
        images: float32[N, P] of unit length.
        classes: float32[C, P] of unit length.
        scale: the model's logit scale.

    Returns:
        float32[N, C].
    """
    logits = scale * images @ classes.T
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def embed_images(embedder: Embedder, images: Sequence[ImageRef], batch_size: int) -> np.ndarray:
    """The embeddings of images, float32[N, P].

    Raises:
        UserError: an image cannot be read. An evaluation leaves nothing out.
    """
    with progress_bar("embedding images", len(images)) as bar:
        parts = []
        for batch in batched((image.open() for image in images), batch_size):
            parts.append(embedder.images(batch))
            bar.advance(len(batch))
    return np.concatenate(parts)


def batched(images: Iterable[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    """Lists of at most `size` images."""
    images = iter(images)
    while batch := list(islice(images, size)):
        yield batch


@dataclass(frozen=True)
class ZeroShotResult:
    """Predictions for N labelled images.

    classes: their names, C.
    targets: int[N], the right class.
    predicted: int[N].
    ranks: int[N], number of classes ranked before the right one.
    confidences: float[N], probability of the predicted class.
    """

    classes: list[str]
    targets: np.ndarray
    predicted: np.ndarray
    ranks: np.ndarray
    confidences: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        return self.ranks == 0

    def figures(self) -> dict[str, tuple[float, Interval]]:
        """Metric name -> (value, 95 % interval): Wilson's for shares, bootstrap for the others.

        top5 is there if there are more than 5 classes.
        """
        total, hits = len(self.targets), self.hits
        found = {f"top{k}": share_with_interval(self.ranks < k) for k in (1, 5) if k < len(self.classes)}
        found["mean_per_class"] = (
            mean_per_class(self.targets, hits),
            bootstrap_interval(lambda sample: mean_per_class(self.targets[sample], hits[sample]), total),
        )
        found["calibration_error"] = (
            calibration_error(self.confidences, hits),
            bootstrap_interval(lambda sample: calibration_error(self.confidences[sample], hits[sample]), total),
        )
        return found

    def per_class(self) -> list[tuple[str, int, float | None]]:
        """(class, number of images, share of hits or None without images), in the order of the classes."""
        counts = np.bincount(self.targets, minlength=len(self.classes))
        right = np.bincount(self.targets, weights=self.hits, minlength=len(self.classes))
        pairs = zip(self.classes, counts.tolist(), right.tolist(), strict=True)
        return [(name, count, hits / count if count else None) for name, count, hits in pairs]

    def confusion(self) -> np.ndarray:
        """The confusion matrix, int[C, C]: rows are the right classes, columns the predicted ones."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        np.add.at(counts, (self.targets, self.predicted), 1)
        return counts

    def flat(self) -> dict[str, float | None]:
        """Metric name -> number, as in scores.json."""
        flat = {"images": len(self.targets), "classes": len(self.classes)} | flatten_intervals(self.figures())
        return flat | {f"class/{name}": share for name, _, share in self.per_class()}


def classify_labelled(
    embedder: Embedder, data: LabelledImages, prompts: Sequence[str] = PROMPTS, batch_size: int = 64
) -> ZeroShotResult:
    """Classify labelled images by the names of their classes.

    Raises:
        UserError: an image cannot be read, or a text is too long for the model.
    """
    classes = class_embeddings(embedder, data.classes, prompts)
    return score_embeddings(embedder, data, classes, embed_images(embedder, data.images, batch_size))


def score_embeddings(
    embedder: Embedder, data: LabelledImages, classes: np.ndarray, images: np.ndarray
) -> ZeroShotResult:
    """The result from embeddings of classes, float32[C, P], and of images, float32[N, P]."""
    targets = np.array(data.targets)
    similarities = images @ classes.T  # not probabilities: at a high scale many round to 0, and their order is lost
    confidences = probabilities(images, classes, embedder.scale).max(axis=1)
    ranks = ranks_of_targets(similarities, targets)
    return ZeroShotResult(data.classes, targets, similarities.argmax(axis=1), ranks, confidences)
