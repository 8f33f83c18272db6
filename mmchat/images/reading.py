"""Read an RGB image from bytes or a path, safely.

Images are untrusted input: a file may be truncated or not be an image at all, and a few kilobytes may claim a billion
pixels.
"""

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from mmchat.errors import UserError
from mmchat.files import refuse_special
from mmchat.images.cost import bytes_per_pixel, largest
from mmchat.images.formats import is_unread_heif, readable_formats
from mmchat.images.rgb import check_mode, orientation, to_rgb
from mmchat.images.store import RGB_BYTES

MAX_PIXELS = 178_956_970
"""Largest width x height accepted: the size at which Pillow itself refuses (2 x `Image.MAX_IMAGE_PIXELS`). If a decoder
takes more than 4 bytes per pixel, the limit of its format is lower, and the memory the same (cost.py)."""

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def load_image(
    source: str | Path | bytes | IO[bytes],
    max_pixels: int = MAX_PIXELS,
    name: str = "",
    draft: int | None = None,
    number: int = 0,
) -> Image.Image:
    """Decode one image and make it RGB as `as_rgb` does.

    Args:
        source: A file path, the encoded bytes, or a file of them.
        max_pixels: Refuse larger images before decoding (decompression bombs), as in `MAX_PIXELS`.
        name: Name of the image in error messages, if `source` is bytes.
        draft: Decode a JPEG at 1/2, 1/4 or 1/8 of its size (libjpeg then drops high frequencies), as long as both
            sides keep at least this many pixels.
        number: Index of the image in a file that holds several (see `image_count`).

    Raises:
        UserError: The image is missing, undecodable, truncated or too large. The message names it.
    """
    with _opened(source, max_pixels, name, number) as image:
        if draft is not None:
            image.draft(None, (draft, draft))
        return to_rgb(image, consume=True)


def image_size(source: str | Path | bytes | IO[bytes], max_pixels: int = MAX_PIXELS, name: str = "") -> tuple[int, int]:
    """Width and height of what `load_image` returns, read from the header. Arguments and errors as there."""
    with _opened(source, max_pixels, name) as image:
        width, height = image.size
        # For TIFF, Pillow reports the size after rotation.
        sideways = image.format != "TIFF" and orientation(image) in SIDEWAYS
        return (height, width) if sideways else (width, height)


def image_count(source: str | Path) -> int:
    """Number of pages of a TIFF; 1 for other images, animations included. Errors as in `load_image`."""
    with _opened(source, MAX_PIXELS, "") as image:
        return getattr(image, "n_frames", 1) if image.format == "TIFF" else 1


@contextmanager
def _opened(
    source: str | Path | bytes | IO[bytes], max_pixels: int, name: str, number: int = 0
) -> Iterator[Image.Image]:
    """Open an image without decoding it. Turns what Pillow raises while it is open into UserError."""
    name = f"image {name or ('bytes' if isinstance(source, bytes) else source)}"
    try:
        with open_header(source) as image:
            if number:
                image.seek(number)
            _check_pixels(image, max_pixels, name)
            check_mode(image, name)
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder, expected an image file") from None
    except UnidentifiedImageError:
        begin = _beginning(source)
        if is_unread_heif(begin):
            problem = f"{name} is HEIC, which needs pillow-heif; run pip install 'mmchat[heif]'"
            raise UserError(problem, "undecodable_image") from None
        kind = "truncated_image" if _begins_as_image(begin) else "undecodable_image"
        raise UserError(f"{name} is not in a format that Pillow can read", kind) from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is refused as a decompression bomb: {error}", "decompression_bomb") from None
    except MemoryError:
        raise UserError(f"{name} does not fit into memory", "out_of_memory") from None
    except Exception as error:
        # Decoders of damaged files raise whatever their code runs into: RuntimeError (AVIF), TypeError (TIFF), ...
        problem = f"{name} is broken or cut off: {str(error) or type(error).__name__}"
        raise UserError(problem, "truncated_image") from None


def _check_pixels(image: Image.Image, max_pixels: int, name: str) -> None:
    width, height = image.size
    limit, of_format = max_pixels, ""
    if width * height <= max_pixels and (cost := bytes_per_pixel(image)) > RGB_BYTES:
        limit = largest(max_pixels, cost)
        of_format = f" for {image.format} of this kind, which takes {cost:.3g} bytes per pixel to decode"
    if width * height > limit:
        problem = (
            f"{name} claims {width}x{height} pixels, more than the limit of {limit:,}{of_format}; "
            "make it smaller, or raise the limit if you trust it"
        )
        raise UserError(problem, "decompression_bomb")


def _beginning(source: str | Path | bytes | IO[bytes]) -> bytes:
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            return file.read(16)
    if isinstance(source, bytes):
        return source[:16]
    source.seek(0)
    return source.read(16)


def _begins_as_image(begin: bytes) -> bool:
    """Whether a file that no decoder takes begins like an image: the rest is missing or damaged."""
    accepts = [Image.OPEN[name][1] for name in readable_formats()]
    return any(accept is not None and accept(begin) is True for accept in accepts)


def open_header(source: str | Path | bytes | IO[bytes]) -> Image.Image:
    """Open an image of a format in `FORMATS` without decoding it. Raises what Pillow raises.

    Pillow's warning of large images is left out: callers have a limit of their own.

    Raises:
        UserError: it is a pipe or a device.
    """
    if isinstance(source, str | Path):
        refuse_special(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return Image.open(file, formats=readable_formats())


def extension_of(data: bytes, name: str) -> str:
    """File extension (`jpg`, `png`, ...) of encoded bytes, by their content.

    Raises:
        UserError: Not an image, or a decompression bomb. The message names it `name`.
    """
    try:
        with open_header(data) as image:
            kind = (image.format or "").lower()
    except Exception:  # as in `_opened`
        raise UserError(f"image {name} is not in a format that Pillow can read") from None
    return {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif", "jpeg2000": "jp2"}.get(kind, kind)


def data_uri(image: Image.Image, side: int | None = None) -> str:
    """An image as a PNG data URI, its longer side at most `side` pixels."""
    if side is not None:
        image = image.copy()
        image.thumbnail((side, side))
    with io.BytesIO() as encoded:
        image.save(encoded, "PNG")
        return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
