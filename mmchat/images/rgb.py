"""A decoded image becomes RGB. This is the only place: for paths, bytes and PIL images, in training and inference.

- EXIF orientation is applied.
- Transparency is composited over white: dropping alpha would show arbitrary colours.
- More than 8 bits of gray are scaled by their full range: Pillow would clip them, and nearly all would be white.
- What Pillow's decoders leave to the caller is done: 12-bit TIFF, 16-bit TIFF in which 0 is white, and the transparent
  shade of PNG with fewer or more than 8 bits.

A large image is converted in bands, so that it is not held several times.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin
from PIL.ExifTags import Base as Exif

from mmchat.errors import UserError

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
        consume: The caller gives the image up: its memory may be reused or freed.
    """
    pixels = _Pixels.of(image)
    if "transparency" in image.info and isinstance(image, ImageFile.ImageFile) and image.tile:
        image.info["transparency"] = _decoded_shade(image.info["transparency"], raw_mode=image.tile[0][3])
    image.load()
    if orientation(image) != 1:
        image, consume = ImageOps.exif_transpose(image), True
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, BAND_PIXELS // image.width)
    if image.height <= rows:
        return pixels.to_rgb(image)
    if consume and image.mode in ("RGBA", "RGBX"):
        return _in_place(image, rows, pixels)
    return _in_bands(image, rows, pixels, consume)


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


def _in_bands(image: Image.Image, rows: int, pixels: _Pixels, consume: bool) -> Image.Image:
    """Convert band by band."""
    size = image.size
    boxes = [(0, top, size[0], min(top + rows, size[1])) for top in range(0, size[1], rows)]
    smaller = image.mode in ("1", "L", "P", "I;16", "I;16B", "I;16L")  # fewer bytes per pixel than RGB
    bands = _release(image, boxes) if consume and smaller else (image.crop(box) for box in boxes)
    result = Image.new("RGB", size, None)
    for box, band in zip(boxes, bands, strict=True):
        result.paste(pixels.to_rgb(band), box)
    return result


def _release(image: Image.Image, boxes: list[tuple[int, int, int, int]]) -> Iterator[Image.Image]:
    """The bands of an image that is given up: its memory is freed before the first, that of a band after it."""
    empty = image.crop(boxes[0])  # with the palette
    stores = []
    for box in boxes:
        data = image.crop(box).tobytes()
        stores.append(mmap.mmap(-1, len(data)))  # closing it returns the memory to the system; free may keep it
        stores[-1].write(data)
    image.close()
    return (
        _take(empty.crop((0, 0, right, bottom - top)), store)
        for (_, top, right, bottom), store in zip(boxes, stores, strict=True)
    )


def _take(band: Image.Image, store: mmap.mmap) -> Image.Image:
    band.frombytes(store[:])
    store.close()
    return band


def _in_place(image: Image.Image, rows: int, pixels: _Pixels) -> Image.Image:
    """Composite an image of four bytes per pixel over white in its own memory: RGB has four bytes per pixel, too."""
    width, height = image.size
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        image.paste(pixels.to_rgb(image.crop(box)).convert(image.mode), box)
    # Pillow's own `putalpha` changes the mode of an image in the same way.
    image.im.setmode("RGB")
    image._mode = "RGB"
    image.info.pop("transparency", None)
    return image


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
