"""Read an RGB image from bytes or a path, safely. Imports no torch.

Images are untrusted input: a path may leave the data set's folder, a file may be truncated, and a few kilobytes may
claim a billion pixels.
"""

import base64
import io
import os
import struct
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base as Exif

from mmchat.errors import UserError

MAX_PIXELS = 178_956_970
"""Largest width x height accepted: the size at which Pillow itself refuses (2 x `Image.MAX_IMAGE_PIXELS`)."""

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_PNG_CHUNK, _PNG_CHECKSUM = struct.Struct(">I4s"), 4
"""Header of a chunk (length, type); bytes of the checksum after its data."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def resolve_inside(root: Path, relative: str) -> Path:
    """The absolute path of `relative` below `root`, with links resolved.

    Raises:
        UserError: The path leaves `root` (`..`, an absolute path, or a link that points outside).
    """
    root = root.resolve()
    if "\0" in relative:
        raise UserError(
            f"image path {relative!r} holds a null character, which is not allowed in a path", "missing_image"
        )
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise UserError(
            f"image path {relative!r} leaves the image root {root}; "
            "give a path below it, or name a root that holds all images",
            kind="path_outside_root",
        )
    return path


def load_image(
    source: str | Path | bytes,
    max_pixels: int = MAX_PIXELS,
    name: str = "",
    draft: int | None = None,
    number: int = 0,
) -> Image.Image:
    """Decode one image, apply its EXIF orientation, and convert it to RGB.

    Transparent pixels are composited over white: dropping alpha would show arbitrary colours.

    Args:
        source: A file path or the encoded bytes.
        max_pixels: Refuse larger images before decoding (decompression bombs).
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
        ImageOps.exif_transpose(image, in_place=True)  # not in place, it would copy an upright image
        return _to_rgb(image)


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


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an image that is opened but not decoded. 1 is upright."""
    file = image.fp if isinstance(image, ImageFile.ImageFile) and image.format == "PNG" else None
    if file is not None and not _png_has_text_after_pixels(file):
        # PngImageFile.getexif would decode the image to read chunks after its pixels
        return Image.Image.getexif(image).get(Exif.Orientation, 1)
    return image.getexif().get(Exif.Orientation, 1)


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


@contextmanager
def _opened(
    source: str | Path | bytes | IO[bytes], max_pixels: int, name: str, number: int = 0
) -> Iterator[Image.Image]:
    """Open an image without decoding it. Turns what Pillow raises while it is open into UserError."""
    name = f"image {name or ('bytes' if isinstance(source, bytes) else source)}"
    try:
        with warnings.catch_warnings():
            # Pillow warns above half its limit; here only `max_pixels` counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if number:
                    image.seek(number)
                width, height = image.size
                if width * height > max_pixels:
                    raise UserError(
                        f"{name} claims {width}x{height} pixels, more than the limit of {max_pixels:,}; "
                        "make it smaller, or raise the limit if you trust it"
                    )
                if image.mode in ("I", "F"):
                    raise UserError(f"{name} has 32-bit pixels of unknown range; convert it to 8 or 16 bits")
                yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder, expected an image file") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} is not in a format that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is refused as a decompression bomb: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # What Pillow's decoders raise on truncated or damaged files.
        raise UserError(f"{name} is broken or cut off: {error}") from None


def extension_of(data: bytes, name: str) -> str:
    """File extension (`jpg`, `png`, ...) of encoded bytes, by their content.

    Raises:
        UserError: Not an image, or a decompression bomb. The message names it `name`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = (image.format or "").lower()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError(f"image {name} is not in a format that Pillow can read") from None
    return {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}.get(kind, kind)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits to 8: all but the darkest values would become white.
        image = image.convert("I").point(lambda shade: shade * (1 / 257)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def data_uri(image: Image.Image, side: int | None = None) -> str:
    """An image as a PNG data URI, its longer side at most `side` pixels."""
    if side is not None:
        image = image.copy()
        image.thumbnail((side, side))
    with io.BytesIO() as encoded:
        image.save(encoded, "PNG")
        return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def find_images(paths: list[Path], suffixes: Set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Find image files, in a stable order, each once.

    Args:
        paths: Files, taken as they are, and folders, searched recursively.
        suffixes: Lower-case suffixes of the files to take from folders.

    Raises:
        UserError: A path does not exist, or no image was found.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            found.update(dict.fromkeys(sorted(inside)))
        elif path.exists():
            found[path] = None
        else:
            raise UserError(f"{path} does not exist; expected an image file or a folder of images")
    if not found:
        looked_for = ", ".join(sorted(suffixes))
        raise UserError(f"no image found in {', '.join(map(str, paths))} (looked for {looked_for})")
    return list(found)
