"""The one list of image formats: what people train on. No other decoder of Pillow is ever started.

Pillow knows some forty formats. One of them, PostScript, runs Ghostscript on the file, whatever its name is.
"""

from PIL import Image

FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "HEIF": (".heic", ".heif", ".hif"),
}
"""Pillow's name of a format -> its file name endings. HEIF is read where `pillow_heif` has registered it."""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def readable_formats() -> list[str]:
    """Those formats for which Pillow has a decoder."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
