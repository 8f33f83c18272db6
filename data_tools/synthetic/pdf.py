"""Pages of PDFs: as images, and what they say by their own text layer.

pypdfium2 (PDFium, which Chromium shows PDFs with) draws and reads; both are in the same coordinates.
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
from synthetic import degradation
from synthetic.generate import SKIPPED, Sample
from synthetic.records import image_path, record
from synthetic.text_folder import tidy

PDF_SUFFIX = ".pdf"
_FEWEST = 20
"""Characters of a page that is worth reading; those with fewer are scans, plates and blank sheets."""
_TOLERANCE = 1.0
"""Points by which ink may leave the visible part of a page."""


class Refused(Exception):  # noqa: N818  It is no error: it is why a page is left out.
    """A page whose text is not what is seen; the message says why."""


@dataclass(frozen=True)
class PdfFolder:
    """Numbers the pages of all PDFs below a folder. files: path and pages."""

    files: tuple[tuple[str, int], ...]
    digest: str

    def __len__(self) -> int:
        return sum(pages for _, pages in self.files)

    def page(self, number: int, side: int) -> tuple[Image.Image, str]:
        """The page in grey, its longer side at `side` pixels, and its text, a line a line.

        Raises:
            Refused: it has hardly any text, or text outside what is visible.
        """
        path, inside = self.place(number)
        with _document(path) as document:
            page = document[inside]
            text = _text(page)
            return page.render(scale=side / max(page.get_size()), grayscale=True).to_pil().convert("L"), text

    def place(self, number: int) -> tuple[str, int]:
        """File and page in it, from 0."""
        for path, pages in self.files:
            if number < pages:
                return path, number
            number -= pages
        raise IndexError(number)


@dataclass(frozen=True)
class PdfMaker:
    """Makes a sample of page `n`; of a refused one a line that says why."""

    seed: int
    pages: PdfFolder
    side: int
    level: str
    prompt: str

    def __call__(self, number: int) -> Sample:
        path, inside = self.pages.place(number)
        where = f"{Path(path).name}:{inside + 1}"
        try:
            image, text = self.pages.page(number, self.side)
        except Refused as reason:
            return Sample({f"{SKIPPED}/pages": [{"where": where, "reason": str(reason)}]})
        # It stands as straight as it was printed: where its ink is, only PDFium knows.
        wear = replace(degradation.choose(random.Random(f"{self.seed}/pdf/{number}"), self.level), degrees=0.0)
        name = image_path("pdf", number, wear.suffix)
        data = degradation.encoded(degradation.apply(image, wear, [self.seed, number]), wear)
        return Sample({"pages": [record(f"pdf/{number:07}", name, self.prompt, text, where=where)]}, {name: data})


def open_pdfs(folder: Path) -> PdfFolder:
    """Raises UserError for a file that is no PDF, or is locked."""
    files, whole = [], hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() == PDF_SUFFIX):
        with _document(str(path)) as document:
            files.append((str(path), len(document)))
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return PdfFolder(tuple(files), whole.hexdigest())


def _document(path: str) -> Any:
    require("pypdfium2", extra="tools")
    import pypdfium2

    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise UserError(f"{path} is no PDF that can be opened: {error}; remove it from the folder") from None


def _text(page: Any) -> str:
    text_page = page.get_textpage()
    lines = [tidy(line) for line in text_page.get_text_range().splitlines()]
    text = "\n".join(line for line in lines if line)
    if len(text) < _FEWEST:
        raise Refused(f"{len(text)} characters of text")
    if "\ufffd" in text or "\ufffe" in text:
        raise Refused("characters that the PDF does not name")
    if IMAGE_PLACEHOLDER in text:
        raise Refused(f"says {IMAGE_PLACEHOLDER}, which a record could not tell from an image")
    left, bottom, right, top = page.get_cropbox()
    for number in range(text_page.count_chars()):
        x0, y0, x1, y1 = text_page.get_charbox(number)
        empty = x1 <= x0 or y1 <= y0  # white space
        if not empty and (
            x0 < left - _TOLERANCE or y0 < bottom - _TOLERANCE or x1 > right + _TOLERANCE or y1 > top + _TOLERANCE
        ):
            raise Refused(f"text outside the visible page, at ({x0:.0f}, {y0:.0f}) points")
    return text
