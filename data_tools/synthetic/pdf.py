"""Pages of PDFs as images, with the text of their text layer.

pypdfium2 (PDFium, Chromium's PDF library) renders the pages and reads the text, in the same coordinates.
"""

import hashlib
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError
from mmchat.extras import require
from synthetic.degradation import degrade, encode_image, sample_degradation
from synthetic.generate import SKIPPED, Sample
from synthetic.records import image_path, make_record
from synthetic.text_folder import normalise_text

PDF_SUFFIX = ".pdf"
_MIN_CHARACTERS = 20
"""Pages with fewer characters are left out: scans, plates and blank pages."""
_TOLERANCE = 1.0
"""Points by which text may extend beyond the visible page."""


class UnreadablePage(Exception):  # noqa: N818  Not an error: the reason why a page is left out.
    """The text layer of a page does not match what is visible. The message gives the reason."""


@dataclass(frozen=True)
class PdfFolder:
    """Pages of all PDFs below a folder, numbered from 0. files: path and number of pages."""

    files: tuple[tuple[str, int], ...]
    digest: str

    def __len__(self) -> int:
        return sum(pages for _, pages in self.files)

    def page(self, number: int, side: int) -> tuple[Image.Image, str]:
        """A page in grey, its longer side `side` pixels, and its text with line breaks.

        Raises:
            UnreadablePage: it has hardly any text, or text outside the visible page.
        """
        path, page_number = self.locate(number)
        with _document(path) as document:
            page = document[page_number]
            text = _text(page)
            return page.render(scale=side / max(page.get_size()), grayscale=True).to_pil().convert("L"), text

    def locate(self, number: int) -> tuple[str, int]:
        """(path of the file, page number in it from 0)."""
        for path, pages in self.files:
            if number < pages:
                return path, number
            number -= pages
        raise IndexError(number)


@dataclass(frozen=True)
class PdfMaker:
    """Makes a sample of page `n`; of an unreadable one an entry in `skipped/` with the reason."""

    seed: int
    pages: PdfFolder
    side: int
    level: str
    prompt: str

    def __call__(self, number: int) -> Sample:
        path, page_number = self.pages.locate(number)
        where = f"{Path(path).name}:{page_number + 1}"
        try:
            image, text = self.pages.page(number, self.side)
        except UnreadablePage as reason:
            return Sample({f"{SKIPPED}/pages": [{"where": where, "reason": str(reason)}]})
        # Not rotated: the positions of its ink are not known here, so a rotation could not be checked.
        degradation = replace(sample_degradation(random.Random(f"{self.seed}/pdf/{number}"), self.level), degrees=0.0)
        name = image_path("pdf", number, degradation.suffix)
        data = encode_image(degrade(image, degradation, [self.seed, number]), degradation.quality)
        return Sample({"pages": [make_record(f"pdf/{number:07}", name, self.prompt, text, where=where)]}, {name: data})


def open_pdfs(folder: Path) -> PdfFolder:
    """Raises UserError for a file that is not a PDF, or is encrypted."""
    files, total = [], hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() == PDF_SUFFIX):
        with _document(str(path)) as document:
            files.append((str(path), len(document)))
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return PdfFolder(tuple(files), total.hexdigest())


def _document(path: str) -> Any:
    require("pypdfium2", extra="tools")
    import pypdfium2

    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise UserError(f"{path} cannot be opened as a PDF: {error}; remove it from the folder") from None


def _text(page: Any) -> str:
    text_page = page.get_textpage()
    lines = [normalise_text(line) for line in text_page.get_text_range().splitlines()]
    text = "\n".join(line for line in lines if line)
    if len(text) < _MIN_CHARACTERS:
        raise UnreadablePage(f"{len(text)} characters of text")
    if "\ufffd" in text or "\ufffe" in text:
        raise UnreadablePage("characters without a Unicode mapping in the PDF")
    if IMAGE_PLACEHOLDER in text:
        raise UnreadablePage(f"contains {IMAGE_PLACEHOLDER}, which a record would read as an image")
    left, bottom, right, top = page.get_cropbox()
    for number in range(text_page.count_chars()):
        x0, y0, x1, y1 = text_page.get_charbox(number)
        empty = x1 <= x0 or y1 <= y0  # white space
        if not empty and (
            x0 < left - _TOLERANCE or y0 < bottom - _TOLERANCE or x1 > right + _TOLERANCE or y1 > top + _TOLERANCE
        ):
            raise UnreadablePage(f"text outside the visible page, at ({x0:.0f}, {y0:.0f}) points")
    return text
