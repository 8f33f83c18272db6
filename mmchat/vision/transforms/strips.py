"""Resize images whose scaled or padded form would take too much memory, and make only the pixels that are kept.

An image of 100 x 20,000 pixels, padded to a square, has 400 million pixels, of which a tower sees 336 x 336. Pillow can
resize a box of an image, but takes its corners in single precision, so bytes would differ. Here one pass of Pillow's
resampling is computed for the wanted rows alone, with the weights of src/libImaging/Resample.c: double precision, then
22 bits after the point. The results are Pillow's, to the bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image

from mmchat.vision.transforms.tiling import Size

LARGEST_PIXELS = 8_000_000
"""Pixels of a scaled or padded image that Pillow may make: 32 MB."""
STRIP_ASPECT = 20
"""From this ratio of the sides on, the padding is not even made row by row."""
_PRECISION_BITS = 22
_CHUNK_VALUES = 1 << 19
"""Values that are converted to double precision at a time."""


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near, far = ((a + 2.0) * x - (a + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3), 0.0)


_FILTERS: dict[Image.Resampling, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    Image.Resampling.BILINEAR: (1.0, _bilinear),
    Image.Resampling.BICUBIC: (2.0, _bicubic),
    Image.Resampling.LANCZOS: (3.0, _lanczos),
}


@dataclass(frozen=True)
class Pass:
    """One pass of Pillow's resampling along one axis.

    Attributes:
        length: Pixels before.
        scaled: Pixels after.
        resample: The filter.
    """

    length: int
    scaled: int
    resample: Image.Resampling

    def weights(self, positions: range) -> Iterator[tuple[int, np.ndarray]]:
        """For each position after: the first position before, and the weights from there on, as whole numbers."""
        radius, function = _FILTERS[self.resample]
        scale = self.length / self.scaled
        stretch = max(scale, 1.0)
        support = radius * stretch
        for position in positions:
            centre = (position + 0.5) * scale
            first = max(0, int(centre - support + 0.5))
            last = min(self.length, int(centre + support + 0.5))
            found = function((np.arange(first, last) - centre + 0.5) * (1.0 / stretch))
            # cumsum adds in order, as Pillow does; sum would add in pairs
            found = found / np.cumsum(found)[-1] * (1 << _PRECISION_BITS)
            yield first, np.trunc(found + np.where(found < 0, -0.5, 0.5))

    def reach(self, positions: range) -> range:
        """The positions before that any of these positions after depends on."""
        scale = self.length / self.scaled
        support = _FILTERS[self.resample][0] * max(scale, 1.0) + 1
        first, last = (positions.start + 0.5) * scale - support, (positions.stop - 0.5) * scale + support
        return range(max(0, int(first)), min(self.length, ceil(last)))

    def rows(self, pixels: np.ndarray, offset: int, positions: range, fill: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
        """Rows after the pass.

        Args:
            pixels: uint8[rows, columns, 3]; the rows before, from `offset` on. Others have the colour `fill`.
            offset: Position of the first row.
            positions: Positions of the rows to make.
            fill: The colour of all other rows before.

        Returns:
            uint8[len(positions), columns, 3].
        """
        height, columns, channels = pixels.shape
        made = np.empty((len(positions), columns, channels), np.uint8)
        weights = list(self.weights(positions))
        step = max(1, _CHUNK_VALUES // (height * channels))
        for left in range(0, columns, step):
            # The sums are whole numbers below 2^53, which double precision holds exactly.
            block = pixels[:, left : left + step].astype(np.float64).reshape(height, -1)
            colours = np.tile(np.array(fill, np.float64), block.shape[1] // channels)
            for row, (first, of_row) in zip(made, weights, strict=True):
                start = min(max(first, offset), offset + height)
                stop = max(start, min(first + len(of_row), offset + height))
                inside = of_row[start - first : stop - first]
                total = inside @ block[start - offset : stop - offset] + (of_row.sum() - inside.sum()) * colours
                rounded = (total.astype(np.int64) + (1 << (_PRECISION_BITS - 1))) >> _PRECISION_BITS
                row[left : left + step] = np.clip(rounded, 0, 255).reshape(-1, channels)
        return made


def pad_and_resize(
    image: Image.Image, colour: tuple[int, int, int], side: int, resample: Image.Resampling
) -> Image.Image:
    """Centre the image on a square of `colour`, and resize that to `side`, without making the square."""
    width, height = image.size
    along = Pass(max(image.size), side, resample)
    offset = (along.length - min(image.size)) // 2
    place = _affected(along, offset, min(image.size))
    if width >= height:  # the horizontal pass is first, and leaves rows of padding as they are
        pixels = np.asarray(image.resize((side, height), resample))
        part, corner = Image.fromarray(along.rows(pixels, offset, place, colour)), (0, place.start)
    else:
        made = _columns_of_padded(image, along, offset, place, colour)
        part, corner = made.resize((len(place), side), resample), (place.start, 0)
    square = Image.new("RGB", (side, side), colour)
    square.paste(part, corner)
    return square


def _columns_of_padded(
    image: Image.Image, along: Pass, offset: int, place: range, colour: tuple[int, int, int]
) -> Image.Image:
    """The horizontal pass over a tall image that is padded left and right, some rows at a time."""
    made = Image.new("RGB", (len(place), image.height))
    is_strip = image.height > STRIP_ASPECT * image.width
    step = max(1, LARGEST_PIXELS // 16 // (image.width if is_strip else along.length))
    for top in range(0, image.height, step):
        rows = image.crop((0, top, image.width, min(top + step, image.height)))
        if is_strip:
            columns = along.rows(np.asarray(rows).transpose(1, 0, 2), offset, place, colour)
            part = Image.fromarray(np.ascontiguousarray(columns.transpose(1, 0, 2)))
        else:
            padded = Image.new("RGB", (along.length, rows.height), colour)
            padded.paste(rows, (offset, 0))
            resized = padded.resize((along.scaled, rows.height), along.resample)
            part = resized.crop((place.start, 0, place.stop, rows.height))
        made.paste(part, (0, top))
    return made


def _affected(along: Pass, offset: int, length: int) -> range:
    """The positions after the pass that depend on the image at `offset`."""
    scale = along.scaled / along.length
    support = ceil(_FILTERS[along.resample][0] * max(1.0, scale)) + 1
    first, last = int(offset * scale) - support, ceil((offset + length) * scale) + support
    return range(max(0, first), min(along.scaled, last))


def resize_and_crop_strip(
    image: Image.Image, scaled: Size, side: int, resample: Image.Resampling, vertical_first: bool
) -> Image.Image:
    """Resize to `scaled` and crop the centre square of `side`: the long axis only where it is kept.

    Args:
        image: An RGB image.
        scaled: Width and height to resize to.
        side: Of the square that is kept.
        resample: The filter.
        vertical_first: Whether Pillow resizes vertically before it resizes horizontally.
    """
    tall = image.height > image.width
    across, along = scaled if tall else scaled[::-1]
    length = max(image.size)
    one = Pass(length, along, resample)
    kept = range((along - side) // 2, (along - side) // 2 + side)
    reach = one.reach(kept)
    box = (0, reach.start, image.width, reach.stop) if tall else (reach.start, 0, reach.stop, image.height)
    part = image.crop(box)
    if tall != vertical_first:  # the short axis is first
        part = part.resize((across, part.height) if tall else (part.width, across), resample)
    pixels = np.asarray(part) if tall else np.asarray(part).transpose(1, 0, 2)
    pixels = one.rows(pixels, reach.start, kept)
    part = Image.fromarray(np.ascontiguousarray(pixels if tall else pixels.transpose(1, 0, 2)))
    if tall == vertical_first:
        part = part.resize((across, side) if tall else (side, across), resample)
    before = (across - side) // 2
    return part.crop((before, 0, before + side, side) if tall else (0, before, side, before + side))
