"""Preprocessing of images for a tower. PIL and NumPy only: runs in data workers.

`preprocess` changes the geometry of one image and gives uint8. `normalise` converts a batch of uint8 to floats by a
table of 256 entries per channel, which is exact because a byte has 256 values.
"""

from collections.abc import Sequence
from math import gcd

import numpy as np
import PIL
from PIL import Image

from mmchat.vision.spec import Grid, Preprocessing, TowerSpec
from mmchat.vision.transforms.cutting import RESAMPLING, cut, mean_colour, padded_square
from mmchat.vision.transforms.strips import LARGEST_PIXELS, resize_and_crop_strip
from mmchat.vision.transforms.tiling import Size

PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13
PATCHES_AT_ONCE = 256
"""Patches that `normalise` converts at a time: about as many as fit into the cache."""


def preprocess(image: Image.Image, spec: TowerSpec, several: bool = False) -> np.ndarray:
    """Convert an image to the views that a tower sees of it.

    Bit-equal to transformers' PIL image processors (CLIP, SigLIP, SigLIP 2, DINOv2, SAM, GotOcr2 as InternVL uses it,
    LLaVA-NeXT, LLaVA-OneVision, Idefics3) and to LLaVA's `pad` before normalising.

    Args:
        image: An RGB image.
        spec: The tower's spec.
        several: Whether the conversation has several images, on which the views may depend.

    Returns:
        uint8[views, 3, view_size, view_size]; height or width is smaller if `normalise` pads (SAM).
    """
    preprocessing = spec.preprocessing
    resample = RESAMPLING[preprocessing.resample]
    if grid := spec.grid(image.size):
        return patches(image, grid, spec.patch_size, resample)
    if preprocessing.tiling is None:
        squares = [_fit_to_square(image, preprocessing, spec.image_size, resample)]
    else:
        squares = cut(image, preprocessing, spec.image_size, several)
    width, height = squares[0].size
    views = np.empty((len(squares), 3, height, width), np.uint8)
    for view, square in zip(views, squares, strict=True):
        view[:] = np.asarray(square).transpose(2, 0, 1)
    return views


def patches(image: Image.Image, grid: Grid, side: int, resample: Image.Resampling) -> np.ndarray:
    """Resize the image to its grid of patches and cut it: uint8[rows * columns, 3, side, side] in reading order."""
    rows, columns = grid
    pixels = np.asarray(image.resize((columns * side, rows * side), resample)).reshape(rows, side, columns, side, 3)
    return np.ascontiguousarray(pixels.transpose(0, 2, 4, 1, 3)).reshape(-1, 3, side, side)


def image_from_patches(views: np.ndarray, grid: Grid) -> np.ndarray:
    """Inverse of `patches`: [rows * columns, 3, side, side] -> [3, rows * side, columns * side]."""
    rows, columns = grid
    _, channels, side, _ = views.shape
    pixels = views.reshape(rows, columns, channels, side, side).transpose(2, 0, 3, 1, 4)
    return pixels.reshape(channels, rows * side, columns * side)


def _fit_to_square(
    image: Image.Image, preprocessing: Preprocessing, size: int, resample: Image.Resampling
) -> Image.Image:
    if preprocessing.fit == "shortest-edge-crop":
        width, height = image.size
        edge = round(size / preprocessing.crop_fraction)
        long = int(edge * max(image.size) / min(image.size))  # truncated, as CLIPImageProcessor does
        return resize_and_crop(image, (edge, long) if width <= height else (long, edge), size, resample)
    if preprocessing.fit == "longest-edge-pad":
        return image.resize(longest_edge_size(*image.size, size), resample)
    if preprocessing.fit == "pad":
        return padded_square(image, mean_colour(preprocessing), size, resample)
    return image.resize((size, size), resample)


def resize_and_crop(image: Image.Image, scaled: tuple[int, int], side: int, resample: Image.Resampling) -> Image.Image:
    """Resize to `scaled` and crop the centre square of `side`.

    Bit-equal to doing both in turn, but computes as few of the cropped pixels as possible.
    """
    (width, height), (to_width, to_height) = image.size, scaled
    columns, rows = aligned_span(width, to_width, side), aligned_span(height, to_height, side)
    all_columns, all_rows = (0, to_width), (0, to_height)
    vertical_first = vertical_pass_first(image.size, scaled)
    candidates = ((columns, rows), (columns, all_rows), (all_columns, rows), (all_columns, all_rows))
    (left, right), (top, bottom) = next(
        spans
        for spans in candidates
        if vertical_pass_first(image.size, tuple(end - start for start, end in spans)) == vertical_first
    )
    if (right - left) * (bottom - top) > LARGEST_PIXELS:
        return resize_and_crop_strip(image, scaled, side, resample, vertical_first)
    box = (left * width // to_width, top * height // to_height, right * width // to_width, bottom * height // to_height)
    image = image.resize((right - left, bottom - top), resample, box=box)
    x, y = (to_width - side) // 2 - left, (to_height - side) // 2 - top
    return image.crop((x, y, x + side, y + side))


def vertical_pass_first(size: Size, resized: Size) -> bool:
    """Whether Pillow resizes vertically before it resizes horizontally. The order changes bytes: each pass rounds.

    Pillow decides by the size of the image and of the result, also if it resizes only a box of the image: since 13 in
    src/libImaging/Resample.c (its pull request 9549), before in `Image.resize`.
    """
    (width, height), (to_width, to_height) = size, resized
    if PILLOW_13:
        return height > to_height and height - to_height > 2 * (width - to_width)
    return height > to_height and height > 100 * width


def aligned_span(length: int, scaled: int, side: int) -> tuple[int, int]:
    """The shortest span of pixels that holds the middle `side` of `length` resized to `scaled`, and whose ends are on
    pixel borders of the original.

    Pillow stores a box in single precision: with ends inside a pixel the weights would be rounded, and bytes change.
    """
    start = (scaled - side) // 2
    step = scaled // gcd(length, scaled)
    return start // step * step, -(-(start + side) // step) * step


def longest_edge_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the longer side `size`, each at least one pixel.

    Rounds as SAM does (segment_anything/utils/transforms.py `get_preprocess_shape`).
    """
    scale = size / max(width, height)
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def normalise(images: Sequence[np.ndarray], spec: TowerSpec) -> np.ndarray:
    """Convert bytes to the tower's input range: `(x / 255 - mean) / std`.

    Rounds after each step like transformers (float64 product, then float32), so that results are bit-equal.

    Args:
        images: Views, uint8[3, h, w] each.
        spec: The tower's spec.

    Returns:
        float32[B, 3, H, W] with the size of a view. Pixels that a view lacks right and below are 0 (SAM's padding).
    """
    preprocessing = spec.preprocessing
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    tables = [
        (unit - np.float32(mean)) / np.float32(std)
        for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
    ]
    out = np.zeros((len(images), 3, spec.view_size, spec.view_size), dtype=np.float32)
    if spec.native:  # one call per patch would cost more than its work
        for start in range(0, len(images), PATCHES_AT_ONCE):
            chunk = np.stack(images[start : start + PATCHES_AT_ONCE])
            for channel, table in enumerate(tables):
                out[start : start + len(chunk), channel] = np.take(table, chunk[:, channel], mode="clip")
        return out
    # Per channel, because NumPy widens indices to 64 bits and those of one channel fit into the cache. No byte exceeds
    # the table; "clip" avoids a copy of `out`.
    for view, square in zip(images, out, strict=True):
        covered = square[:, : view.shape[1], : view.shape[2]]
        for table, bytes_of_channel, floats in zip(tables, view, covered, strict=True):
            np.take(table, bytes_of_channel, out=floats, mode="clip")
    return out
