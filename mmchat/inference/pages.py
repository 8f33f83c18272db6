"""Pages of files: one for an image, several for a TIFF or PDF. PDFs are rasterized by PDFium."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.files import refuse_special
from mmchat.images import IMAGE_SUFFIXES, MAX_PIXELS, image_count, load_image
from mmchat.inference.jobs.items import Item
from mmchat.inference.jobs.sources import Sources

if TYPE_CHECKING:
    import pypdfium2

SUFFIXES = IMAGE_SUFFIXES | {".pdf"}
PDF_HEADER = b"%PDF-"
PDF_SEARCH_BYTES = 1024
"""Readers search the header in this many bytes (PDF 1.7 reference, appendix H, note 13)."""
POINTS_PER_INCH = 72


def pages_of(items: Iterable[Item], dpi: int) -> Iterator[Item]:
    """The pages of items: those of a file, and one of each image that is a part of a file or an address."""
    for item in items:
        if item.file is None:
            yield replace(item, key={**item.key, "page": 1})
        else:
            for page in list_pages(Path(item.file), dpi):
                yield replace(item, key=page.key, open=page.open, stem=f"{item.stem}-{page.key['page']}")


def count_pages(sources: Sources, dpi: int) -> int | None:
    """Number of pages; None if that becomes known only by reading what can be read once."""
    return None if sources.count() is None else sum(1 for _ in pages_of(sources, dpi))


def list_pages(file: Path, dpi: int) -> list[Item]:
    """The pages of a file, numbered from 1.

    A file that cannot be opened has one page, whose `open` raises the error.

    Args:
        file: An image, TIFF or PDF.
        dpi: Resolution for PDFs.
    """
    pdf = _is_pdf(file)
    try:
        count = _pdf_pages(file) if pdf else image_count(file)
    except UserError:
        count = 1
    numbers = range(1, max(count, 1) + 1)
    return [
        Item(
            {"path": str(file), "page": number},
            partial(rasterize_page, file, number, dpi) if pdf else partial(load_image, file, number=number - 1),
        )
        for number in numbers
    ]


def rasterize_page(file: Path, number: int, dpi: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Rasterize a page of a PDF.

    Args:
        file: The PDF.
        number: The page, from 1.
        dpi: Pixels per inch.
        max_pixels: Limit of the image size.

    Returns:
        An RGB image.

    Raises:
        UserError: The PDF is damaged or encrypted, has no such page, or the page exceeds `max_pixels`.
    """
    with _opened(file) as document:
        if not 1 <= number <= len(document):
            raise UserError(f"{file} has {len(document)} pages, no page {number}")
        document.init_forms()  # otherwise filled-in form fields are missing
        page = document[number - 1]
        scale = dpi / POINTS_PER_INCH
        width, height = (math.ceil(side * scale) for side in page.get_size())
        if width * height > max_pixels:
            raise UserError(
                f"{file}, page {number}, has {width}x{height} pixels at {dpi} dpi, more than the limit of "
                f"{max_pixels:,}; use a smaller --dpi"
            )
        return page.render(scale=scale).to_pil().convert("RGB")


def _is_pdf(file: Path) -> bool:
    try:
        refuse_special(file)
        with file.open("rb") as start:
            return PDF_HEADER in start.read(PDF_SEARCH_BYTES)
    except (OSError, UserError):
        return False  # opening it as an image reports why


def _pdf_pages(file: Path) -> int:
    with _opened(file) as document:
        return len(document)


@contextmanager
def _opened(file: Path) -> Iterator["pypdfium2.PdfDocument"]:
    """An open PDF. Errors of PDFium become UserError."""
    require("pypdfium2")
    import pypdfium2

    try:
        with file.open("rb") as source, pypdfium2.PdfDocument(source) as document:
            yield document
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise UserError(f"{file} is encrypted and needs a password; save it without one") from None
        raise UserError(f"{file} is broken or cut off: {error}") from None
