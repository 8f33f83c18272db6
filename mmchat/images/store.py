"""Memory in which a large image is decoded and becomes RGB, so that its pixels are held once.

Pillow keeps 4 bytes for a pixel in RGB, and 1, 2 or 4 for one in another mode. A store has what RGB needs, and the
decoder writes to its end. Converting from the first row on then overwrites only rows that were converted before.
"""

import mmap
import sys
from typing import Any

from PIL import Image, ImageFile

from mmchat.images import webp

RGB_BYTES = 4
"""Bytes of a pixel in Pillow's RGB."""
BYTES = {
    **dict.fromkeys(("L", "P"), 1),
    **dict.fromkeys(("I;16", "I;16B", "I;16L"), 2),
    **dict.fromkeys(("I", "LA", "La", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"), RGB_BYTES),
}
"""Mode -> bytes of a pixel (src/libImaging/Storage.c of Pillow), of those that Pillow can map. "1" becomes "L"."""
_IS_POSIX = sys.platform != "win32"


class PixelStore:
    """Memory of its own for one image. It returns to the system with the last image of it.

    Args:
        size: Width and height in pixels.
        pixel: Bytes of a pixel in the widest mode that it will hold.

    Raises:
        MemoryError: There is none.
    """

    def __init__(self, size: tuple[int, int], pixel: int = RGB_BYTES) -> None:
        self.size, self.pixel = size, pixel
        # Private: the other kind belongs to no process, and giving back a part of it does not free it.
        kind: dict[str, Any] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if _IS_POSIX else {}
        try:
            self.memory = mmap.mmap(-1, size[0] * size[1] * pixel, **kind)
        except OSError as error:
            raise MemoryError(str(error)) from None

    def image(self, mode: str) -> Image.Image:
        """The pixels in a mode, at the end of the store."""
        (width, height), pixel = self.size, BYTES[mode]
        offset = width * height * (self.pixel - pixel)
        pixels = Image.core.map_buffer(self.memory, self.size, "raw", offset, (mode, width * pixel, 1))
        return Image.new(mode, (0, 0))._new(pixels)

    def give_back(self, rows: int) -> None:
        """Free the first rows of an image that fills the store. They are not read again."""
        length = rows * self.size[0] * self.pixel // mmap.PAGESIZE * mmap.PAGESIZE
        if length and _IS_POSIX:
            self.memory.madvise(mmap.MADV_DONTNEED, 0, length)


def decode(image: ImageFile.ImageFile, pixel: int) -> tuple[Image.Image, PixelStore]:
    """Decode an image into a store. Raises what Pillow raises.

    Args:
        image: Not decoded yet. It is given up.
        pixel: Bytes of a pixel in the store, at least those of the image's mode.
    """
    store = PixelStore(image.size, pixel)
    if image.format in ("WEBP", "AVIF"):
        return _decode_frame(image, store), store
    place = store.image(image.mode) if image.mode in BYTES else None
    if place is not None:
        image.im = place.im
    image.load()
    if place is None or image.im is not place.im:  # the decoder made memory of its own
        pixels = image.im.convert("L") if image.mode == "1" else image.im
        place = store.image(pixels.mode)
        place.im.paste(pixels, (0, 0, *image.size))
        image._mode, image.im = place.mode, place.im
        if image.palette:
            image.palette.dirty = 1
    return image, store


def _decode_frame(image: Any, store: PixelStore) -> Image.Image:
    """The first frame of a WebP or AVIF. Pillow would hold it in its decoder, as bytes and as an image."""
    pixels, decoder = store.image(image.mode), image._decoder
    image._decoder = None
    if image.format == "WEBP" and not image.is_animated and webp.can_decode():
        del decoder
        webp.decode_webp(_encoded(image), store.memory, image.width)
        return pixels
    frame = decoder.get_next() if image.format == "WEBP" else decoder.get_frame(0)
    del decoder
    if frame is None:
        raise OSError("its first frame cannot be decoded")
    pixels.frombytes(frame[0], "raw", image.rawmode if image.format == "WEBP" else image.mode)
    return pixels


def _encoded(image: ImageFile.ImageFile) -> bytes:
    assert image.fp is not None
    image.fp.seek(0)
    return image.fp.read()
