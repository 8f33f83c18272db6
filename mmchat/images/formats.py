"""The one list of image formats: what people train on. No other decoder of Pillow is ever started.

Pillow knows some forty formats. One of them, PostScript, runs Ghostscript on the file, whatever its name is.
"""

from PIL import Image

from mmchat.extras import installed

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
"""Pillow's name of a format -> its file name endings. HEIF, the format of phones, needs the extra `heif`."""
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Major brands of HEIF files, at byte 8 (ISO/IEC 23008-12, annex B). AVIF has its own."""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def readable_formats() -> list[str]:
    """Those formats for which Pillow has a decoder."""
    Image.init()
    if "HEIF" not in Image.OPEN and installed("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def is_unread_heif(beginning: bytes) -> bool:
    """Whether a file with these first bytes is HEIF and the package that decodes it is missing."""
    return beginning[4:8] == b"ftyp" and beginning[8:12] in HEIF_BRANDS and "HEIF" not in readable_formats()
