"""Real text from folders of .txt and .md files, paragraph by paragraph."""

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
"""Bytes that are read at a time: several pages."""
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*")
_HEADING_LINE = re.compile(r"(?m)^#{1,6}[ \t].*$")
_ITEM = re.compile(r"(?m)^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]")
"""CommonMark 0.31, "ATX headings" and "List items", which begin a block without a blank line before them."""
_SHAPED = re.compile(r"[\u0590-\u109f\u1780-\u18af\ufb1d-\ufdff\ufe70-\ufefc]")
"""Scripts that run from right to left, or whose letters change with their neighbours; layout.py sets neither."""


@dataclass(frozen=True)
class Paragraph:
    """One line of text, however long: white space is single spaces."""

    text: str
    heading: bool = False


@dataclass(frozen=True)
class TextFolder:
    """Text files, of which a stretch from anywhere can be read. files: path and size in bytes."""

    files: tuple[tuple[str, int], ...]
    digest: str

    def paragraphs(self) -> Iterator[Paragraph]:
        """Every paragraph of all files."""
        for path, _ in self.files:
            yield from _paragraphs(Path(path).read_bytes())

    def stretch(self, place: int) -> list[Paragraph]:
        """The paragraphs from byte `place` of all files on; the first that begins there, and about 16 KiB of them.

        There may be none where a file ends.
        """
        for path, size in self.files:
            if place < size:
                with Path(path).open("rb") as file:
                    file.seek(place)
                    data = file.read(_WINDOW)
                return _paragraphs(_whole(data, place == 0, place + len(data) >= size))
            place -= size
        raise IndexError(place)

    @property
    def size(self) -> int:
        return sum(size for _, size in self.files)


def open_texts(folder: Path) -> TextFolder:
    """All text files below a folder.

    Raises:
        UserError: the folder does not exist or holds no text; a file is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"--text {folder} is no folder")
    files, whole = [], hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES):
        data = path.read_bytes()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start + 1}; convert it") from None
        if data.strip():
            files.append((str(path), len(data)))
            whole.update(hashlib.sha256(data).digest())
    return TextFolder(tuple(files), whole.hexdigest())


def _whole(data: bytes, begins: bool, ends: bool) -> bytes:
    """Without the paragraphs that a window cuts; where there is no blank line, without the lines, or characters."""
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
    """The files are known to be UTF-8, so all that can be ignored is a character that a window cuts."""
    found = []
    whole = _HEADING_LINE.sub(r"\n\g<0>\n", data.decode("utf-8", "ignore").replace("\r\n", "\n"))
    for block in re.split(r"\n\s*\n", _ITEM.sub(r"\n\g<0>", whole)):
        heading = _HEADING.fullmatch(block.strip())
        text = tidy(heading[1] if heading else block)
        # What a record could not tell from an image, and what would be drawn wrongly, is passed over.
        if text and IMAGE_PLACEHOLDER not in text and not _SHAPED.search(text):
            found.append(Paragraph(text, bool(heading)))
    return found


def tidy(text: str) -> str:
    """Composed characters (NFC), single spaces, and nothing that has no shape."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if text.isprintable():
        return text
    return "".join(character for character in text if character.isprintable())
