"""Check one image, read once: whether it can be decoded, what is unusual, and its hashes for comparison."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from mmchat.data.image_refs import ImageBytes, ImageDataUri, ImageRef
from mmchat.errors import UserError
from mmchat.images import MAX_PIXELS, load_image, open_header, orientation

MAX_ASPECT = 10
"""Maximum long side over short side."""
MIN_SIDE = 10
"""Minimum side in pixels: less than one patch of any tower."""
HUGE_PIXELS = 50_000_000
"""Pixels above which an image counts as huge: decoded it takes 150 MB in every worker."""
SHADE_MARGIN = 3
"""Minimum grey-level difference between neighbours that counts as a step, above JPEG noise on an even surface."""
LEAST_STEPS, MOST_STEPS = 6, 58
"""Steps of 64. Outside this range the image has too little content (a blank page, a gradient) to be compared."""
KEPT = 4096
"""Number of image checks that a process caches: a file shared by many records is decoded once."""


@dataclass(frozen=True)
class ImageCheck:
    """The result of checking one image.

    Attributes:
        problems: (kind, reason) of each finding.
        digest: BLAKE2b of the encoded bytes as two uint64; None if the image cannot be decoded.
        hash: Two 64-bit difference hashes, along rows and along columns; zeros if the image has too little content.
        width: In pixels, after EXIF rotation.
        height: In pixels, after EXIF rotation.
    """

    problems: tuple[tuple[str, str], ...]
    digest: tuple[int, int] | None = None
    hash: tuple[int, int] = (0, 0)
    width: int = 0
    height: int = 0


def check_image(image: ImageRef, max_pixels: int | None = None) -> ImageCheck:
    """Read and decode an image as training does. Problems are returned, not raised. `max_pixels` as in its source."""
    # Inline bytes are not cached: the cache would keep them alive.
    check = _check_image if isinstance(image, ImageBytes | ImageDataUri) else _check_image_once
    return check(image, max_pixels or MAX_PIXELS)


def _check_image(ref: ImageRef, max_pixels: int) -> ImageCheck:
    try:
        data = ref.read()
    except UserError as error:
        return ImageCheck(((error.kind or "missing_image", str(error)),))
    try:
        image = load_image(data, max_pixels, ref.name)
    except UserError as error:
        return ImageCheck(((error.kind, str(error)),))
    findings = [*_rotation_finding(data), *_shape_findings(image.width, image.height)]
    problems = tuple((kind, f"image {ref.name} {what}") for kind, what in findings)
    return ImageCheck(problems, digest(data), difference_hash(image), image.width, image.height)


_check_image_once = lru_cache(maxsize=KEPT)(_check_image)


def digest(data: bytes) -> tuple[int, int]:
    """128 bits of BLAKE2b as two uint64."""
    digest_bytes = hashlib.blake2b(data, digest_size=16).digest()
    return int.from_bytes(digest_bytes[:8], "little"), int.from_bytes(digest_bytes[8:], "little")


def difference_hash(image: Image.Image) -> tuple[int, int]:
    """Bits of the 8x8 steps between adjacent areas that go up, along rows and along columns (dHash, Krawetz 2013)."""
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


def _rotation_finding(data: bytes) -> list[tuple[str, str]]:
    with open_header(data) as image:
        found = orientation(image)
    return [("exif_rotation", f"has the EXIF orientation {found}")] if found in range(2, 9) else []


def _shape_findings(width: int, height: int) -> list[tuple[str, str]]:
    shape = f"has {width:,}x{height:,} pixels"
    found = []
    if max(width, height) > MAX_ASPECT * min(width, height):
        found.append(("extreme_aspect", f"{shape}, more than {MAX_ASPECT} to 1"))
    if min(width, height) < MIN_SIDE:
        found.append(("tiny_image", f"{shape}, a side under {MIN_SIDE}"))
    if width * height > HUGE_PIXELS:
        found.append(("huge_image", f"{shape}, more than {HUGE_PIXELS:,}"))
    return found
