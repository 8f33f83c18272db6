"""Memory that decoding an image takes, by its header. A limit of pixels is a limit of memory: 4 bytes per pixel.

Most decoders of Pillow need the image and a few rows. Others hold it in their own form beside it. The figures were
measured with bench/image_memory.py.
"""

import math
from typing import Any

from mmchat.images import webp
from mmchat.images.store import BYTES, RGB_BYTES

_AVIF_BYTES = {"RGB": 12, "RGBA": 16}
"""Planes of the decoder (up to 3 bytes, or twice that with more than 8 bits), their RGB, and the image."""
_WEBP_BYTES = {"VP8 ": 4, "ALPH": 7, "VP8L": 9}
"""Kind of the pixels -> the image; with a plane of transparency and its decoder; with a copy that is not compressed."""
_WEBP_FRAME_BYTES = 12
"""Two canvases, and the image. So does Pillow decode animations."""
_OPENJPEG_BYTES = 5
"""Of OpenJPEG, for each channel: 32 bits, and a copy as bytes."""
_COEFFICIENT_BYTES = 2
"""Of libjpeg, for each coefficient: it holds all of a progressive JPEG, as each scan refines them."""


def bytes_per_pixel(image: Any) -> float:
    """Bytes per pixel that `load_image` holds at most, of an `ImageFile` that is not decoded yet."""
    stored = BYTES.get(image.mode, 1)
    if image.format == "AVIF":
        return _AVIF_BYTES.get(image.mode, max(_AVIF_BYTES.values()))
    if image.format == "WEBP":
        is_frame = image.is_animated or not webp.can_decode()
        return _WEBP_FRAME_BYTES if is_frame else _WEBP_BYTES[webp.kind_of_pixels(image.fp)]
    if image.format == "JPEG2000":
        return _OPENJPEG_BYTES * len(image.getbands()) + stored
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        return max(RGB_BYTES, stored + _COEFFICIENT_BYTES * _samples_per_pixel(image))
    return RGB_BYTES


def largest(max_pixels: int, cost: float) -> int:
    """Pixels of an image of some bytes per pixel that take the memory of `max_pixels`."""
    return math.floor(max_pixels * RGB_BYTES / cost)


def _samples_per_pixel(image: Any) -> float:
    """Of all channels of a JPEG: 3 in full, 1.5 with colours of half the width and height."""
    factors = [(across, down) for _, across, down, _ in image.layer]
    across, down = map(max, zip(*factors, strict=True))
    return sum(a * d for a, d in factors) / (across * down)
