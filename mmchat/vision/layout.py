"""The layout of an image: how many views it has, and the sequence of slots and markers that stands for it in a text.

A layout is a function of the image's size, of the tower's settings and of how many images the conversation has. It is
known before an image is decoded and imports no torch: planning, rendering, collation and preview all read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEWLINE = -1
"""Index in a slot map of the learned vector that ends a row of features."""


@dataclass(frozen=True, eq=False)
class SlotMap:
    """Which features the slots of an image show, for fits that leave out, add or mix features.

    Attributes:
        indices: int64[slots], or int64[slots, taps] if slots show weighted sums. Numbers of projected features, counted
            over the views of the image in order; NEWLINE is the learned vector.
        weights: float32[slots, taps]; None if every slot shows one feature.
    """

    indices: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The arrays by the names of the model's arguments: `slot_indices`, and `slot_weights` if there are any."""
        return {"slot_indices": self.indices} | ({} if self.weights is None else {"slot_weights": self.weights})


@dataclass(frozen=True, eq=False)
class ImageLayout:
    """Views and slots of one image.

    Attributes:
        views: Number of views.
        expansion: What stands for the image in the token sequence: numbers of slots, and literal text of markers, in
            order.
        slot_map: What the slots show; None if they show all features of the views in order.
    """

    views: int
    expansion: tuple[int | str, ...]
    slot_map: SlotMap | None = None

    @property
    def slots(self) -> int:
        """Number of slots."""
        return sum(part for part in self.expansion if isinstance(part, int))


def views_only(views: int, tokens_per_view: int) -> ImageLayout:
    """The layout of an image whose slots show the features of its views in order, without markers."""
    return ImageLayout(views, (views * tokens_per_view,))


def join_slot_maps(maps: Sequence[SlotMap], features: Sequence[int]) -> SlotMap:
    """One slot map of several images, whose features are concatenated in the same order.

    Args:
        maps: The map of each image.
        features: Number of features of each image: its views times the features of a view.

    Raises:
        ValueError: A map names a feature that its image does not have.
    """
    for number, (one, count) in enumerate(zip(maps, features, strict=True)):
        if one.indices.max(initial=0) >= count:
            raise ValueError(f"the slot map of image {number} names feature {one.indices.max()} of {count}")
    taps = max((1 if one.weights is None else one.weights.shape[1] for one in maps), default=1)
    starts = np.cumsum([0, *features])
    indices = [np.zeros(0, np.int64), *(_moved(one.indices, start) for one, start in zip(maps, starts, strict=False))]
    if taps == 1:
        return SlotMap(np.concatenate(indices))
    mixed = [weighted(number, one.weights, taps) for number, one in zip(indices[1:], maps, strict=True)]
    return SlotMap(*(np.concatenate(parts) for parts in zip(*mixed, strict=True)))


def _moved(indices: np.ndarray, start: int) -> np.ndarray:
    return np.where(indices == NEWLINE, NEWLINE, indices + start)


def weighted(indices: np.ndarray, weights: np.ndarray | None, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """A map of single features as one of weighted sums: the first weight is 1, so the sum is exact."""
    if weights is not None:
        return indices, weights
    return np.repeat(indices[:, None], taps, axis=1), np.eye(1, taps, dtype=np.float32).repeat(len(indices), axis=0)
