"""Decode a WebP into memory that the caller has, by the libwebp that Pillow brings.

Pillow decodes every WebP as an animation: two canvases of libwebp, a copy of one as bytes, and the image, each of 4
bytes per pixel. libwebp's incremental decoder (src/webp/decode.h, `WebPINewRGB`) writes to the caller's memory alone,
the same pixels.
"""

import ctypes
import mmap
import os
import struct
from functools import cache
from typing import IO, Any

from PIL import features

_MODE_RGBA = 1
_STATUS_OK = 0
_FILE_HEADER, _CHUNK = 12, struct.Struct("<4sI")
"""Bytes of `RIFF`, size and `WEBP`; header of a chunk (RFC 9649, section 2.3)."""


def can_decode() -> bool:
    """Whether libwebp can be called: it cannot where Pillow is linked with it statically."""
    return _library() is not None


def decode_webp(data: bytes, memory: mmap.mmap, width: int) -> None:
    """Decode a WebP of one frame to RGBA.

    Args:
        data: The encoded file.
        memory: 4 bytes per pixel.
        width: Of the image in pixels.

    Raises:
        OSError: It is damaged.
    """
    library = _library()
    assert library is not None
    pixels = (ctypes.c_ubyte * len(memory)).from_buffer(memory)
    decoder = library.WebPINewRGB(_MODE_RGBA, pixels, len(memory), 4 * width)
    if not decoder:
        raise MemoryError
    try:
        status = library.WebPIUpdate(decoder, data, len(data))
    finally:
        library.WebPIDelete(decoder)
        del pixels  # it keeps the memory from being resized or closed
    if status != _STATUS_OK:
        raise OSError(f"libwebp stopped with status {status}")


def kind_of_pixels(file: IO[bytes] | Any) -> str:
    """The first chunk with pixels: "VP8 ", "VP8L" (lossless), or "ALPH", which is transparency beside "VP8 "."""
    before = file.tell()
    file.seek(_FILE_HEADER)
    kind = b""
    while kind not in (b"VP8 ", b"VP8L", b"ALPH") and len(head := file.read(_CHUNK.size)) == _CHUNK.size:
        kind, length = _CHUNK.unpack(head)
        file.seek(length + length % 2, os.SEEK_CUR)
    file.seek(before)
    return kind.decode("ascii", "replace") if kind in (b"VP8 ", b"ALPH") else "VP8L"


@cache
def _library() -> ctypes.CDLL | None:
    """Pillow's extension with its dependencies, whose functions the loader finds through it."""
    if not features.check("webp"):
        return None
    from PIL import _webp

    try:
        library = ctypes.CDLL(_webp.__file__)
        library.WebPINewRGB.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        library.WebPINewRGB.restype = ctypes.c_void_p
        library.WebPIUpdate.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
        library.WebPIDelete.argtypes = (ctypes.c_void_p,)
    except (AttributeError, OSError):
        return None
    return library
