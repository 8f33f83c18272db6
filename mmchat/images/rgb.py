"""A decoded image becomes RGB. This is the only place: for paths, bytes and PIL images, in training and inference.

- EXIF orientation is applied.
- Transparency is composited over white: dropping alpha would show arbitrary colours.
- More than 8 bits of gray are scaled by their full range: Pillow would clip them, and nearly all would be white.
- What Pillow's decoders leave to the caller is done: 12-bit TIFF, 16-bit TIFF in which 0 is white, and the transparent
  shade of PNG with fewer or more than 8 bits.

A large image is converted in bands, in the memory of the result, so that it is not held several times.
"""

import os
import struct
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin
from PIL.ExifTags import Base as Exif

from mmchat.errors import UserError
from mmchat.images.store import BYTES, RGB_BYTES, PixelStore, decode

BAND_PIXELS = 1 << 20
"""Pixels that are converted at a time."""
_WHITE_16 = 65535
_GRAY_PNG = {"L;2": 255 // 3, "L;4": 255 // 15}
"""Raw modes of PNG -> step between two shades in 8 bits."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_PNG_CHUNK, _PNG_CHECKSUM = struct.Struct(">I4s"), 4
"""Header of a chunk (length, type); bytes of the checksum after its data."""


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, upright, over white. An image that is so already is returned as it is.

    Args:
        image: Any PIL image, decoded or not. It is decoded if it is not. Of an image that was decoded before, Pillow
            does not say how many bits its file had, so a transparent shade of a PNG with 2 or 4 bits is missed.

    Raises:
        UserError: It cannot be decoded, or its pixels have no defined range of shades or colours.
    """
    try:
        return to_rgb(image)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"an image of {image.width}x{image.height} pixels does not fit into memory") from None
    except Exception as error:
        raise UserError(
            f"an image is broken or cut off: {str(error) or type(error).__name__}", "truncated_image"
        ) from None


def to_rgb(image: Image.Image, consume: bool = False) -> Image.Image:
    """`as_rgb` that raises what Pillow raises.

    Args:
        image: Any PIL image.
        consume: The caller gives the image up, which is not decoded yet if it is a file.
    """
    pixels = _Pixels.of(image)
    if isinstance(image, ImageFile.ImageFile):
        if "transparency" in image.info and image.tile:
            image.info["transparency"] = _decoded_shade(image.info["transparency"], raw_mode=image.tile[0][3])
        rows = max(1, BAND_PIXELS // image.width)
        if consume and image.height > rows:
            return _in_store(image, rows, pixels)
    _load(image)
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, BAND_PIXELS // image.width)
    if image.height <= rows:
        return pixels.to_rgb(image)
    result = Image.new("RGB", image.size, None)
    for box in _bands(image.size, rows):
        result.paste(pixels.to_rgb(image.crop(box)), box)
    return result


def check_mode(image: Image.Image, name: str = "the image") -> None:
    """Refuse pixels without a defined range of shades or colours. Reads the header only. Raises UserError."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        problem = f"{name} has 32-bit pixels of unknown range; convert it to 8 or 16 bits"
        raise UserError(problem, "undecodable_image")
    if image.mode == "LAB":
        raise UserError(f"{name} has CIELAB colours; convert it to RGB", "undecodable_image")


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an image, decoded or not. 1 is upright."""
    file = image.fp if isinstance(image, ImageFile.ImageFile) and image.format == "PNG" else None
    if file is not None and not _png_has_text_after_pixels(file):
        # PngImageFile.getexif would decode the image to read chunks after its pixels
        return Image.Image.getexif(image).get(Exif.Orientation, 1)
    return image.getexif().get(Exif.Orientation, 1)


@dataclass(frozen=True)
class _Pixels:
    """What the header of a file says about its pixels, and Pillow does not apply.

    Attributes:
        white: Largest value of a gray pixel.
        inverted: Whether 0 is white.
    """

    white: int = _WHITE_16
    inverted: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> "_Pixels":
        check_mode(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode.startswith("I;16"):
            bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
            return cls((1 << bits) - 1, image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
        return cls()

    def to_rgb(self, image: Image.Image) -> Image.Image:
        """A decoded, upright image, or a band of it, as RGB."""
        if image.mode == "I" or image.mode.startswith("I;16"):
            image = self._eight_bits(image)
        if not image.has_transparency_data:
            return image.convert("RGB")
        if image.mode == "La":  # Pillow converts gray with premultiplied alpha in two steps only
            image = image.convert("LA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")

    def _eight_bits(self, image: Image.Image) -> Image.Image:
        scale, offset = (-255 / self.white, 255) if self.inverted else (255 / self.white, 0)
        values = image.convert("I")
        gray = values.point(lambda shade: shade * scale + offset).convert("L")
        transparent = gray.info.pop("transparency", None)
        if transparent is None:
            return gray
        opaque = np.where(np.asarray(values) == transparent, np.uint8(0), np.uint8(255))
        return Image.merge("LA", (gray, Image.fromarray(opaque)))


def _decoded_shade(transparent: Any, raw_mode: Any) -> Any:
    """The transparent shade of a PNG in the values of the decoded pixels. Pillow leaves it in the bits of the file."""
    if isinstance(raw_mode, str) and raw_mode in _GRAY_PNG:
        return transparent * _GRAY_PNG[raw_mode]
    return tuple(value >> 8 for value in transparent) if raw_mode == "RGB;16B" else transparent


def _in_store(image: ImageFile.ImageFile, rows: int, pixels: _Pixels) -> Image.Image:
    """Decode a large image and convert it, band by band, in the memory of the result."""
    turn = _orientation_left_to_us(image)
    decoders_of_pillow = image.format not in ("WEBP", "AVIF")
    if turn == 1 and image.mode == "RGB" and not image.has_transparency_data and decoders_of_pillow:
        image.load()
        return image
    if turn == 1:
        decoded, store = decode(image, RGB_BYTES)
        result = store.image("RGB")
        for box in _bands(decoded.size, rows):
            result.paste(pixels.to_rgb(decoded.crop(box)), box)
        return result
    decoded, store = decode(image, BYTES.get(image.mode, 1))
    method, is_sideways, from_end = _TURNS[turn]
    width, height = decoded.size
    result = PixelStore((height, width) if is_sideways else (width, height)).image("RGB")
    for _, top, _, bottom in _bands(decoded.size, max(1, rows // 8)):  # rows that become columns touch every page
        band = pixels.to_rgb(decoded.crop((0, top, width, bottom))).transpose(method)
        start = height - bottom if from_end else top
        result.paste(band, (start, 0) if is_sideways else (0, start))
        store.give_back(bottom)
    return result


def _load(image: Image.Image) -> None:
    """Decode an image. A TIFF that lies on its side is not mapped from its file: Pillow takes width for height then."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load()
        return
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name


_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, False),
    3: (Image.Transpose.ROTATE_180, False, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True),
    5: (Image.Transpose.TRANSPOSE, True, False),
    6: (Image.Transpose.ROTATE_270, True, True),
    7: (Image.Transpose.TRANSVERSE, True, True),
    8: (Image.Transpose.ROTATE_90, True, False),
}
"""Orientation -> how the image is turned, as in `ImageOps.exif_transpose`; whether its rows become columns; whether its
first row becomes the last row or column."""


def _orientation_left_to_us(image: ImageFile.ImageFile) -> int:
    """EXIF orientation. Pillow would turn a TIFF when it decodes it, in a copy."""
    found = orientation(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and found != 1:
        image.getexif()[Exif.Orientation] = 1
        image._size = image._tile_size
    return found if found in _TURNS else 1


def _bands(size: tuple[int, int], rows: int) -> list[tuple[int, int, int, int]]:
    return [(0, top, size[0], min(top + rows, size[1])) for top in range(0, size[1], rows)]


def _png_has_text_after_pixels(file: IO[bytes]) -> bool:
    """Whether EXIF or text (which includes XMP) follows a PNG's pixels (PNG specification, section 5.3: chunks)."""
    before, pixels, found = file.tell(), False, False
    file.seek(len(b"\x89PNG\r\n\x1a\n"))
    while not found and len(head := file.read(_PNG_CHUNK.size)) == _PNG_CHUNK.size:
        length, kind = _PNG_CHUNK.unpack(head)
        pixels |= kind == b"IDAT"
        found = pixels and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
        file.seek(length + _PNG_CHECKSUM, os.SEEK_CUR)
    file.seek(before)
    return found
