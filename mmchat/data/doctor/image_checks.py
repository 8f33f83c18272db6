"""One image, read once: whether it can be decoded, what is odd about it, and what it is recognised by."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from mmchat.data.image_refs import ImageBytes, ImageDataUri, ImageRef
from mmchat.errors import UserError
from mmchat.images import MAX_PIXELS, load_image, orientation

MAX_ASPECT = 10
"""Long side over short side; a CLIP patch of 14 pixels would see a tenth of that across."""
MIN_SIDE = 10
"""Pixels; less than one patch of any tower."""
HUGE_PIXELS = 50_000_000
"""Decoded it takes 150 MB in every worker."""
SHADE_MARGIN = 3
"""Grey levels between neighbours that count as a step: what JPEG adds to an even surface does not."""
LEAST_STEPS, MOST_STEPS = 6, 58
"""Of 64 bits; outside there is too little in the image (a blank page, a slope of light) to tell it from others."""
KEPT = 4096
"""Images whose check a process remembers: files that many records share are decoded once."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class ImageCheck:
    """digest: of the encoded bytes, two uint64; None where they could not be decoded.

    hash: two 64-bit difference hashes, of steps along rows and along columns; zeros where they say nothing.
    width, height: as training sees them, turned.
    """

    problems: tuple[tuple[str, str], ...]
    digest: tuple[int, int] | None = None
    hash: tuple[int, int] = (0, 0)
    width: int = 0
    height: int = 0


def check_image(image: ImageRef) -> ImageCheck:
    """Read and decode as training does. What is wrong comes as (kind, reason), nothing is raised."""
    # Bytes would be kept alive by the memory that is to save reading them.
    return _check_image(image) if isinstance(image, ImageBytes | ImageDataUri) else _check_image_once(image)


def _check_image(ref: ImageRef) -> ImageCheck:
    try:
        data = ref.read()
    except UserError as error:
        return ImageCheck(((error.kind or "missing_image", str(error)),))
    try:
        image = load_image(data, name=ref.name)
    except UserError as error:
        return ImageCheck(((_why_undecodable(data), str(error)),))
    problems = [*_turned(data), *_odd_shape(image.width, image.height)]
    problems = tuple((kind, f"image {ref.name} {what}") for kind, what in problems)
    return ImageCheck(problems, digest(data), difference_hash(image), image.width, image.height)


_check_image_once = lru_cache(maxsize=KEPT)(_check_image)


def digest(data: bytes) -> tuple[int, int]:
    """128 bits of BLAKE2b as two uint64."""
    whole = hashlib.blake2b(data, digest_size=16).digest()
    return int.from_bytes(whole[:8], "little"), int.from_bytes(whole[8:], "little")


def difference_hash(image: Image.Image) -> tuple[int, int]:
    """Which of 8x8 steps between neighbouring areas go up, along rows and along columns (dHash, Krawetz 2013)."""
    grey = image.convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    rows = across[:, 1:] > across[:, :-1] + SHADE_MARGIN
    columns = down[1:] > down[:-1] + SHADE_MARGIN
    if not LEAST_STEPS <= min(rows.sum(), columns.sum()) <= max(rows.sum(), columns.sum()) <= MOST_STEPS:
        return 0, 0
    return _bits(rows), _bits(columns)


def _bits(flags: np.ndarray) -> int:
    return int.from_bytes(np.packbits(flags).tobytes(), "big")


def _why_undecodable(data: bytes) -> str:
    try:
        with _header(data) as image:
            if image.width * image.height > MAX_PIXELS:
                return "decompression_bomb"
            # Shades of 32 bits are refused for what they mean, not for being damaged.
            return "undecodable_image" if image.mode in ("I", "F") else "truncated_image"
    except Image.DecompressionBombError:
        return "decompression_bomb"
    except (OSError, SyntaxError, ValueError, EOFError):
        begins = any(Image.OPEN[name][1](data[:16]) is True for name in _FORMATS if name in Image.OPEN)
        return "truncated_image" if begins else "undecodable_image"


def _turned(data: bytes) -> list[tuple[str, str]]:
    with _header(data) as image:
        turned = orientation(image)
    return [("exif_rotation", f"has the EXIF orientation {turned}")] if turned in range(2, 9) else []


def _odd_shape(width: int, height: int) -> list[tuple[str, str]]:
    shape = f"has {width:,}x{height:,} pixels"
    found = []
    if max(width, height) > MAX_ASPECT * min(width, height):
        found.append(("extreme_aspect", f"{shape}, more than {MAX_ASPECT} to 1"))
    if min(width, height) < MIN_SIDE:
        found.append(("tiny_image", f"{shape}, a side under {MIN_SIDE}"))
    if width * height > HUGE_PIXELS:
        found.append(("huge_image", f"{shape}, more than {HUGE_PIXELS:,}"))
    return found


def _header(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data))
