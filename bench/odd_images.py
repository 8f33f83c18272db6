"""Odd images, written one at a time: every mode, depth and format that training reads, in every shape."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from side_by_side.random_images import draw_clouds

Size = tuple[int, int]
GRAIN = 4
"""Standard deviation of the noise, in 8-bit shades."""
PATCH = 512
"""Side of the square of clouds that is repeated to any size."""


@dataclass(frozen=True)
class OddImage:
    """One file.

    Attributes:
        suffix: Of its name.
        mode: Pillow's mode of its pixels; "P+alpha" is a palette with a transparent entry.
        size: Width and height in pixels.
        options: Of Pillow's `save`.
        orientation: In EXIF.
    """

    suffix: str
    mode: str
    size: Size
    options: dict[str, Any] = field(default_factory=dict)
    orientation: int = 1

    @property
    def name(self) -> str:
        """As "RGB 4000x3000 progressive.jpg"."""
        words = [self.mode, f"{self.size[0]}x{self.size[1]}"]
        words += [key if value is True else str(value) for key, value in self.options.items() if key not in _SPEED]
        words += [f"orientation {self.orientation}"] if self.orientation != 1 else []
        return f"{' '.join(words)}.{self.suffix}"

    def write(self, folder: Path) -> Path:
        """Make the file."""
        options = dict(self.options)
        if self.orientation != 1:
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = self.orientation
            options["exif"] = exif.tobytes()
        if self.mode == "P+alpha":
            options["transparency"] = 3
        image = drawn(self.mode.removesuffix("+alpha"), self.size)
        path = folder / self.name
        if options.pop("animated", False):
            options |= {"save_all": True, "append_images": [Image.new(image.mode, image.size)]}
        image.save(path, **options)
        return path


_SPEED = frozenset({"compress_level", "speed", "method", "quality"})
"""Options that only make writing faster."""


def drawn(mode: str, size: Size) -> Image.Image:
    """Clouds with noise in any mode."""
    width, height = size
    draw = np.random.default_rng(0)
    clouds = np.asarray(draw_clouds(draw, (PATCH, PATCH)), np.float32) + draw.normal(0, GRAIN, (PATCH, PATCH, 1))
    patch = np.clip(clouds, 0, 255).astype(np.uint8)
    if mode in ("I;16", "F"):
        patch = patch[:, :, 0].astype(np.uint16) * 257 if mode == "I;16" else patch[:, :, 0].astype(np.float32)
    else:
        patch = np.asarray(_in_mode(Image.fromarray(patch), mode))
    rows = np.concatenate([patch] * -(-width // PATCH), axis=1)[:, :width]
    pixels = np.concatenate([rows] * -(-height // PATCH))[:height]
    image = Image.fromarray(np.ascontiguousarray(pixels)) if mode in ("I;16", "F") else _from_pixels(pixels, mode)
    return image


def _in_mode(patch: Image.Image, mode: str) -> Image.Image:
    if mode in ("LA", "RGBA", "PA"):
        patch.putalpha(patch.convert("L"))
        return patch.convert("LA") if mode == "PA" else patch.convert(mode)
    return patch.convert("L") if mode == "P" else patch.convert(mode)


def _from_pixels(pixels: np.ndarray, mode: str) -> Image.Image:
    if mode == "1":
        return Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    stored = "L" if mode == "P" else "LA" if mode == "PA" else mode
    image = Image.frombuffer(stored, (width, height), pixels.tobytes(), "raw", stored, 0, 1)
    if mode in ("P", "PA"):
        image.readonly = 0
        image.putpalette(bytes(value for shade in range(256) for value in (shade, 255 - shade, shade // 2)))
    return image


MEDIUM, LARGE = (4000, 3000), (7300, 5400)
"""12 and 39 megapixels."""
FORMATS: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "png": (["1", "L", "P", "P+alpha", "LA", "RGB", "RGBA", "I;16"], [{"compress_level": 1}]),
    "jpg": (["L", "RGB", "CMYK"], [{}, {"progressive": True}]),
    "tif": (
        ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16"],
        [{}, {"compression": "tiff_lzw"}],
    ),
    "webp": (["RGB", "RGBA"], [{"method": 0}, {"lossless": True, "method": 0, "quality": 0}]),
    "bmp": (["1", "L", "P", "RGB", "RGBA"], [{}]),
    "gif": (["L", "P", "P+alpha"], [{}]),
    "avif": (["L", "RGB", "RGBA"], [{"speed": 10}]),
    "ppm": (["1", "L", "I;16", "RGB"], [{}]),
    "jp2": (["L", "LA", "RGB", "RGBA"], [{}]),
}
"""Ending -> the modes that Pillow writes into it, and ways to write it."""
UNREAD = [("tif", "F"), ("tif", "LAB")]
"""Refused by name."""
STRIPS = [(20_000, 1), (1, 20_000), (20_000, 100), (100, 20_000), (1, 3000)]
LIMIT = (13_377, 13_377)
"""Just within 178,956,970 pixels."""


def odd_images() -> Iterator[OddImage]:
    """All of them: some 280."""
    yield from (OddImage(suffix, mode, (300, 200)) for suffix, mode in UNREAD)
    for suffix, (modes, ways) in FORMATS.items():
        for mode in modes:
            for options in ways:
                yield from (OddImage(suffix, mode, size, options) for size in (MEDIUM, LARGE))
            yield OddImage(suffix, mode, (1, 1), ways[0])
    for size in STRIPS:
        yield from (OddImage("png", mode, size, {"compress_level": 1}) for mode in FORMATS["png"][0])
        yield from (OddImage("jpg", mode, size) for mode in FORMATS["jpg"][0])
        yield from (OddImage("tif", mode, size) for mode in ("CMYK", "I;16"))
        yield from (OddImage(suffix, "RGB", _within(size, suffix)) for suffix in ("webp", "bmp", "gif", "jp2"))
    yield OddImage("png", "RGB", (60, 900_000), {"compress_level": 1})
    for orientation in range(2, 9):
        yield OddImage("jpg", "RGB", LARGE, orientation=orientation)
    for suffix, mode in (("png", "RGBA"), ("png", "L"), ("tif", "RGB"), ("webp", "RGB"), ("jpg", "CMYK")):
        yield OddImage(suffix, mode, LARGE, orientation=6)
    for size in ((9000, 8000), LIMIT):
        for mode in FORMATS["png"][0]:
            yield OddImage("png", mode, size, {"compress_level": 1})
        for suffix, mode in (("jpg", "L"), ("jpg", "RGB"), ("jpg", "CMYK"), ("tif", "RGB"), ("tif", "CMYK")):
            yield OddImage(suffix, mode, size)
        for suffix, mode in (("tif", "I;16"), ("ppm", "RGB"), ("bmp", "RGB"), ("gif", "P"), ("webp", "RGB")):
            yield OddImage(suffix, mode, size)
        yield OddImage("jpg", "RGB", size, {"progressive": True})
        yield OddImage("jpg", "RGB", size, orientation=6)
    yield OddImage("webp", "RGB", MEDIUM, {"animated": True, "method": 0})
    yield OddImage("png", "RGB", MEDIUM, {"animated": True, "compress_level": 1})
    yield OddImage("gif", "P", MEDIUM, {"animated": True})


def _within(size: Size, suffix: str) -> Size:
    """WebP's sides are below 16,384."""
    return (min(size[0], 16_383), min(size[1], 16_383)) if suffix == "webp" else size
