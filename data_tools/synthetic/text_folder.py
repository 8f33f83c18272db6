"""Paragraphs of text from folders of .txt and .md files."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError

TEXT_SUFFIXES = (".txt", ".md")
_WINDOW = 16_384
"""Bytes per read: several pages."""
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*")
_HEADING_LINE = re.compile(r"(?m)^#{1,6}[ \t].*$")
_ITEM = re.compile(r"(?m)^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]")
"""CommonMark 0.31, "ATX headings" and "List items": they start a block without a blank line before them."""
_SHAPED = re.compile(r"[\u0590-\u109f\u1780-\u18af\ufb1d-\ufdff\ufe70-\ufefc]")
"""Right-to-left scripts and scripts that need shaping; page_layout.py supports neither."""


@dataclass(frozen=True)
class Paragraph:
    """Text of a paragraph on one line; white space is collapsed to single spaces."""

    text: str
    heading: bool = False


@dataclass(frozen=True)
class TextFolder:
    """Text files with random access to their paragraphs. files: path and size in bytes."""

    files: tuple[tuple[str, int], ...]
    digest: str

    def paragraphs(self) -> Iterator[Paragraph]:
        """Every paragraph of all files."""
        for path, _ in self.files:
            yield from _paragraphs(Path(path).read_bytes())

    def paragraphs_from(self, place: int) -> list[Paragraph]:
        """About 16 KiB of complete paragraphs that start at or after byte `place` of the concatenated files.

        The list may be empty near the end of a file.
        """
        for path, size in self.files:
            if place < size:
                with Path(path).open("rb") as file:
                    file.seek(place)
                    data = file.read(_WINDOW)
                return _paragraphs(_complete_paragraphs(data, place == 0, place + len(data) >= size))
            place -= size
        raise IndexError(place)

    @property
    def size(self) -> int:
        return sum(size for _, size in self.files)


def open_texts(folder: Path) -> TextFolder:
    """All text files below a folder.

    Raises:
        UserError: the folder does not exist, or a file is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"--text {folder} is not a folder")
    files, total = [], hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES):
        data = path.read_bytes()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start + 1}; convert it") from None
        if data.strip():
            files.append((str(path), len(data)))
            total.update(hashlib.sha256(data).digest())
    return TextFolder(tuple(files), total.hexdigest())


def _complete_paragraphs(data: bytes, begins: bool, ends: bool) -> bytes:
    """Remove paragraphs that the window cuts. If there is no blank line, remove cut lines, or cut characters."""
    if not begins:
        blank = _BLANK_LINE.search(data)
        start = blank.end() if blank else data.find(b"\n") + 1
        data = data[start:]
    if not ends:
        blanks = [match.start() for match in _BLANK_LINE.finditer(data)]
        stop = blanks[-1] if blanks else data.rfind(b"\n")
        data = data[:stop] if stop > 0 else data
    return data


def _paragraphs(data: bytes) -> list[Paragraph]:
    """The files are valid UTF-8, so decoding errors are only characters that the window cuts."""
    paragraphs = []
    total = _HEADING_LINE.sub(r"\n\g<0>\n", data.decode("utf-8", "ignore").replace("\r\n", "\n"))
    for block in re.split(r"\n\s*\n", _ITEM.sub(r"\n\g<0>", total)):
        heading = _HEADING.fullmatch(block.strip())
        text = normalise_text(heading[1] if heading else block)
        # Skip text that a record would read as an image placeholder, and scripts that would be drawn incorrectly.
        if text and IMAGE_PLACEHOLDER not in text and not _SHAPED.search(text):
            paragraphs.append(Paragraph(text, bool(heading)))
    return paragraphs


def normalise_text(text: str) -> str:
    """NFC normalisation, single spaces, printable characters only."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if text.isprintable():
        return text
    return "".join(character for character in text if character.isprintable())
