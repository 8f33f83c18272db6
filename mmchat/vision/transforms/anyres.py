"""AnyRes: an image at a resolution that suits its shape, cut into squares, before which it is seen as a whole.

After LLaVA-NeXT and LLaVA-OneVision (arXiv:2408.03326, section 3.2) as transformers has them: `select_best_resolution`
and `get_patch_output_size` in image_processing_utils.py; `unpad_image` and `pack_image_features` in
models/llava_next/modeling_llava_next.py and models/llava_onevision/modeling_llava_onevision.py. No torch.

The image is resized into the best grid of squares and padded there. The features of the squares are put together, those
of the padding are left out, and a learned vector ends every row. All of this is a slot map, computed from the size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, isqrt, sqrt
from typing import ClassVar

import numpy as np

from mmchat.errors import UserError
from mmchat.vision.layout import NEWLINE, ImageLayout, SlotMap, weighted
from mmchat.vision.transforms.tiling import MOST_TILES, Size, check_range

GridShape = tuple[int, int]
"""Rows and columns."""
SHRINK_FROM = 1.1
"""LLaVA-OneVision leaves features as they are until their grid exceeds the limit by this factor on each side."""


@dataclass(frozen=True)
class AnyRes:
    """Settings of AnyRes.

    Attributes:
        grids: Rows and columns of squares to choose from. Of equally good ones the first wins. The default is
            LLaVA-1.6's, `image_grid_pinpoints` divided by the side of a square.
        max_tiles: Features of more squares than this are interpolated to nearly as many (LLaVA-OneVision's
            `anyres_max_9`); None: never.
        one_view_if_several: Whether the images of a conversation with several are padded squares of one view each
            (LLaVA-OneVision).

    Raises:
        UserError: A value is out of range.
    """

    grids: tuple[GridShape, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    max_tiles: int | None = None
    one_view_if_several: bool = False
    has_newline: ClassVar[bool] = True
    fewest_views: ClassVar[int] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", tuple((rows, columns) for rows, columns in self.grids))
        if not self.grids or any(min(grid) < 1 for grid in self.grids):
            raise UserError(f"anyres: expected grids of at least 1 row and 1 column, found {list(self.grids)}")
        check_range("anyres: the number of grids", len(self.grids), MOST_TILES)
        for rows, columns in self.grids:
            check_range("anyres: rows x columns", rows * columns, MOST_TILES)
        if self.max_tiles is not None:
            check_range("anyres: max_tiles", self.max_tiles, MOST_TILES)

    def grid(self, size: Size, image_size: int) -> GridShape:
        """The grid on which most of the image's pixels remain; of those, the smallest.

        Args:
            size: Width and height of the image in pixels.
            image_size: Side of a square in pixels.
        """
        width, height = size
        best, most, least = self.grids[0], 0, inf
        for rows, columns in self.grids:
            to_width, to_height = columns * image_size, rows * image_size
            scale = min(to_width / width, to_height / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            wasted = to_width * to_height - kept
            if kept > most or (kept == most and wasted < least):
                best, most, least = (rows, columns), kept, wasted
        return best

    def resized(self, size: Size, image_size: int) -> Size:
        """Width and height of the image in its grid, before padding. Arguments as in `grid`."""
        (width, height), (rows, columns) = size, self.grid(size, image_size)
        to_width, to_height = columns * image_size, rows * image_size
        if to_width / width < to_height / height:
            return to_width, min(ceil(height * (to_width / width)), to_height)
        return min(ceil(width * (to_height / height)), to_width), to_height

    def views(self, size: Size, image_size: int) -> int:
        """Number of views of an image that is alone in its conversation. Arguments as in `grid`."""
        rows, columns = self.grid(size, image_size)
        return 1 + rows * columns

    def layouts(self, sizes: Sequence[Size], image_size: int, tokens_per_view: int) -> list[ImageLayout]:
        """Layouts of the images of one conversation. Arguments as in `TowerSpec.layouts`."""
        if self.one_view_if_several and len(sizes) > 1:
            slot_map = SlotMap(np.append(np.arange(tokens_per_view), NEWLINE))
            return [ImageLayout(1, (len(slot_map),), slot_map) for _ in sizes]
        return [self._layout(size, image_size, tokens_per_view) for size in sizes]

    def _layout(self, size: Size, image_size: int, tokens_per_view: int) -> ImageLayout:
        rows, columns = self.grid(size, image_size)
        slot_map = self._slot_map(size, rows, columns, isqrt(tokens_per_view))
        return ImageLayout(1 + rows * columns, (len(slot_map),), slot_map)

    def _slot_map(self, size: Size, rows: int, columns: int, side: int) -> SlotMap:
        """The view of the whole image, then the rows of the squares, each with a newline; `side`: of a view."""
        whole = np.arange(side**2)
        places = len(whole) + np.arange(rows * columns * side**2).reshape(rows, columns, side, side)
        places = unpadded(places.transpose(0, 2, 1, 3).reshape(rows * side, columns * side), size)
        height, width = places.shape
        excess = sqrt(height * width / (self.max_tiles * side**2)) if self.max_tiles else 0
        if excess <= SHRINK_FROM:
            ended = np.pad(places, ((0, 0), (0, 1)), constant_values=NEWLINE)
            return SlotMap(np.concatenate([whole, ended.ravel()]))
        indices, weights = bilinear(places, max(1, int(height // excess)), max(1, int(width // excess)))
        ends = np.eye(1, 4, dtype=np.float32)[None].repeat(len(indices), axis=0)
        indices = np.pad(indices, ((0, 0), (0, 1), (0, 0)), constant_values=NEWLINE).reshape(-1, 4)
        weights = np.concatenate([weights, ends], axis=1).reshape(-1, 4)
        whole_indices, whole_weights = weighted(whole, None, 4)
        return SlotMap(np.concatenate([whole_indices, indices]), np.concatenate([whole_weights, weights]))


LLAVA_ONEVISION = AnyRes(tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7)), 9, True)
"""The settings of LLaVA-OneVision: `image_grid_pinpoints` of all grids up to 6 by 6, `anyres_max_9`."""


def unpadded(places: np.ndarray, size: Size) -> np.ndarray:
    """The part of a grid of features that shows the image and not its padding.

    Rounds as `unpad_image`: a row that shows any of the image may be left out.

    Args:
        places: [rows, columns].
        size: Width and height of the image in pixels.
    """
    (height, width), (image_width, image_height) = places.shape, size
    if image_width / image_height > width / height:
        shown = int(round(image_height * (width / image_width), 7))
        padding = (height - shown) // 2
        return places[padding : height - padding]
    shown = int(round(image_width * (height / image_height), 7))
    padding = (width - shown) // 2
    return places[:, padding : width - padding]


def bilinear(places: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear interpolation of a grid of features, as torch's `interpolate` without aligned corners.

    Args:
        places: int[rows, columns], the numbers of the features.
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        int64[height, width, 4] and float32[height, width, 4]: the neighbours of each point, and their weights.
    """
    (top, bottom, down), (left, right, across) = (
        _neighbours(*lengths) for lengths in zip(places.shape, (height, width), strict=True)
    )
    indices = [places[np.ix_(row, column)] for row in (top, bottom) for column in (left, right)]
    weights = [np.outer(row, column) for row in (1 - down, down) for column in (1 - across, across)]
    return np.stack(indices, axis=-1), np.stack(weights, axis=-1)


def _neighbours(length: int, to: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `to` points on `length` features: the features before and after it, and the weight of the latter."""
    scale, half = np.float32(length) / np.float32(to), np.float32(0.5)
    points = np.maximum(scale * (np.arange(to, dtype=np.float32) + half) - half, np.float32(0))
    before = points.astype(np.int64)
    return before, np.minimum(before + 1, length - 1), points - before.astype(np.float32)
