"""An image becomes what a tower was trained to see. PIL and NumPy only: runs in data workers.

Split in two so that the wide part stays cheap: geometry on one image gives uint8, and `normalise`
turns a whole batch of uint8 into floats through a 256-entry table, which is exact because a byte has
only 256 values.
"""

from collections.abc import Sequence
from math import gcd

import numpy as np
from PIL import Image

from mmchat.vision.spec import Grid, Preprocessing, TowerSpec
from mmchat.vision.transforms.tiling import Tiling

PATCHES_AT_ONCE = 256
"""Of an image of native aspect, about: more do not fit into the cache, see `normalise`."""
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(image: Image.Image, spec: TowerSpec) -> np.ndarray:
    """What the tower sees of one RGB image: uint8[views, 3, view_size, view_size], or less where `normalise` pads.

    Bit-equal to transformers' PIL image processors (CLIP, SigLIP, SigLIP 2, DINOv2, SAM, GotOcr2 as InternVL uses it)
    and to LLaVA's `pad` before normalising.
    """
    how = spec.preprocessing
    resample = _RESAMPLING[how.resample]
    if grid := spec.grid(image.size):
        return patches(image, grid, spec.patch_size, resample)
    if how.tiling is None:
        squares = [_fitted(image, how, spec.image_size, resample)]
    else:
        squares = tiles(image, how.tiling, spec.image_size, resample)
    width, height = squares[0].size
    views = np.empty((len(squares), 3, height, width), np.uint8)
    for view, square in zip(views, squares, strict=True):
        view[:] = np.asarray(square).transpose(2, 0, 1)
    return views


def tiles(image: Image.Image, tiling: Tiling, size: int, resample: Image.Resampling) -> list[Image.Image]:
    """The image on the grid's canvas, cut into squares of `size` in reading order; its thumbnail is last."""
    columns, rows = tiling.grid(image.size, size)
    canvas = image.resize((columns * size, rows * size), resample)
    corners = [(column * size, row * size) for row in range(rows) for column in range(columns)]
    squares = [canvas.crop((left, top, left + size, top + size)) for left, top in corners]
    if len(squares) < tiling.views(image.size, size):
        squares.append(image.resize((size, size), resample))
    return squares


def patches(image: Image.Image, grid: Grid, side: int, resample: Image.Resampling) -> np.ndarray:
    """The image resized to the grid, and cut: uint8[rows * columns, 3, side, side] in reading order."""
    rows, columns = grid
    whole = np.asarray(image.resize((columns * side, rows * side), resample)).reshape(rows, side, columns, side, 3)
    return np.ascontiguousarray(whole.transpose(0, 2, 4, 1, 3)).reshape(-1, 3, side, side)


def image_from_patches(views: np.ndarray, grid: Grid) -> np.ndarray:
    """`patches` put together again: [rows * columns, 3, side, side] -> [3, rows * side, columns * side]"""
    rows, columns = grid
    _, channels, side, _ = views.shape
    whole = views.reshape(rows, columns, channels, side, side).transpose(2, 0, 3, 1, 4)
    return whole.reshape(channels, rows * side, columns * side)


def _fitted(image: Image.Image, how: Preprocessing, size: int, resample: Image.Resampling) -> Image.Image:
    if how.fit == "shortest-edge-crop":
        width, height = image.size
        edge = round(size / how.crop_fraction)
        long = int(edge * max(image.size) / min(image.size))  # truncated, as CLIPImageProcessor does
        return resize_and_crop(image, (edge, long) if width <= height else (long, edge), size, resample)
    if how.fit == "longest-edge-pad":
        return image.resize(longest_edge_size(*image.size, size), resample)
    if how.fit == "pad":
        image = pad_to_square(image, tuple(int(channel * 255) for channel in how.mean))
    return image.resize((size, size), resample)


def resize_and_crop(image: Image.Image, scaled: tuple[int, int], side: int, resample: Image.Resampling) -> Image.Image:
    """Bit-equal to resizing to `scaled` and cropping the square of `side` in the middle.

    What is cut off is not computed, as far as the pixels that are left do not change by it.
    """
    (width, height), (to_width, to_height) = image.size, scaled
    left, right = aligned_span(width, to_width, side)
    # Pillow resizes a strip higher than 100 widths in another order if it shrinks; a box would seem to shrink it.
    top, bottom = (0, to_height) if height > 100 * width else aligned_span(height, to_height, side)
    box = (left * width // to_width, top * height // to_height, right * width // to_width, bottom * height // to_height)
    image = image.resize((right - left, bottom - top), resample, box=box)
    x, y = (to_width - side) // 2 - left, (to_height - side) // 2 - top
    return image.crop((x, y, x + side, y + side))


def aligned_span(length: int, scaled: int, side: int) -> tuple[int, int]:
    """The shortest stretch, in pixels of the result, that holds the middle `side` of `length` resized to `scaled` and
    begins and ends between pixels of the original.

    Pillow takes a box in single precision: inside a pixel, weights would differ by rounding and so would bits.
    """
    start = (scaled - side) // 2
    step = scaled // gcd(length, scaled)
    return start // step * step, -(-(start + side) // step) * step


def longest_edge_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the longer side `size` (SAM, segment_anything/utils/transforms.py `get_preprocess_shape`).

    At least one pixel, where a strip would vanish.
    """
    scale = size / max(width, height)
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centre the image on a square of `colour` (LLaVA, llava/mm_utils.py `expand2square`)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def normalise(images: Sequence[np.ndarray], spec: TowerSpec) -> np.ndarray:
    """Bytes to the tower's input range, `(x/255 - mean) / std`: uint8[3, h, w] each -> float32[B, 3, H, W].

    H and W are a view's. What an image lacks right and below is 0 (SAM), which no byte would have become.

    Rounded step by step like transformers (float64 product, float32 afterwards), so results are bit-equal.
    """
    how = spec.preprocessing
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    tables = [(unit - np.float32(mean)) / np.float32(std) for mean, std in zip(how.mean, how.std, strict=True)]
    out = np.zeros((len(images), 3, spec.view_size, spec.view_size), dtype=np.float32)
    if spec.native:  # patches are so small that a call for each would take longer than its work
        for start in range(0, len(images), PATCHES_AT_ONCE):
            some = np.stack(images[start : start + PATCHES_AT_ONCE])
            for channel, table in enumerate(tables):
                out[start : start + len(some), channel] = np.take(table, some[:, channel], mode="clip")
        return out
    # Channel by channel, because NumPy widens indices to 64 bits, and a channel's still fit into the cache. No byte is
    # beyond the table; without "clip" `out` would be written by way of a copy.
    for seen, square in zip(images, out, strict=True):
        written = square[:, : seen.shape[1], : seen.shape[2]]
        for table, bytes_of_channel, floats in zip(tables, seen, written, strict=True):
            np.take(table, bytes_of_channel, out=floats, mode="clip")
    return out
