"""Damaged images of every format that the project reads."""

import io
import random
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

from mmchat.images import image_size, load_image
from mmchat.images.formats import readable_formats
from tests.fuzzing.damage import damaged_bytes

MODES = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "RGBA", "L", "CMYK", "1", "I;16", "F", "LAB"),
    "AVIF": ("RGB", "RGBA"),
    "JPEG2000": ("RGB", "L", "RGBA"),
    "PPM": ("RGB", "L", "1"),
    "HEIF": ("RGB", "RGBA"),
}
OPTIONS: dict[str, tuple[dict, ...]] = {
    "TIFF": ({}, *({"compression": name} for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"))),
    "JPEG": ({}, {"progressive": True}),
    "WEBP": ({}, {"lossless": True}),
}


def encoded_images() -> list[bytes]:
    """Small sound images of all formats, modes and options."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    pixels[10:25, 10:30] = 200
    found = []
    for name in readable_formats():
        for mode in MODES[name]:
            for options in OPTIONS.get(name, ({},)):
                if options.get("compression") == "jpeg" and mode not in ("RGB", "L"):
                    continue  # libtiff's encoder refuses these, and then damages the memory of the process
                file = io.BytesIO()
                try:
                    _in_mode(pixels, mode).save(file, name, **options)
                except (OSError, ValueError, KeyError):  # this compression does not take this mode
                    continue
                found.append(file.getvalue())
        assert found, name
    return found


def _in_mode(pixels: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(pixels)
    return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)


def image_case(seed: int) -> Callable[[int], str]:
    """Opens the image of a number, as `data check` and a data worker do."""
    sound = encoded_images()

    def case(number: int) -> str:
        draw = random.Random(f"image {seed} {number}")
        data = damaged_bytes(draw.choice(sound), draw)
        if draw.random() < 0.1:  # a header that claims many pixels
            data = data.replace(struct.pack(">I", 53), struct.pack(">I", draw.choice((0, 2**16, 2**31 - 1))))
        try:
            image_size(data)
        finally:
            load_image(data, draft=draw.choice((None, 8)))
        return ""

    return case
