"""Rows of comma- or tab-separated text: where each begins, and its cells.

A quote opens a quoted cell, as in RFC 4180, only if it closes properly: before a delimiter or the end of a line. If it
does not, it is text, and the row ends with its line. Such files are written by programs that do not quote (CC3M's and
CC12M's TSV), where one caption `"a dog said` would otherwise take in all rows below it.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

MAX_LINES = 100_000
"""Lines that a quoted cell may span. A quote without an end would otherwise be looked for in the whole file."""

_INSIDE = r'[^"]*+(?:""[^"]*+)*+'


class RowSyntax:
    """The rows of a file with one delimiter.

    Args:
        delimiter: "," or a tab.
    """

    def __init__(self, delimiter: str) -> None:
        quoted, plain = f'"{_INSIDE}"', rf'[^"{delimiter}\r\n][^{delimiter}\r\n]*+'
        cell = f"(?:{quoted}|{plain})?+"
        rest = f"(?:{delimiter}{cell})*+"
        end = r"(?:\r?\n)?+"
        self.delimiter = delimiter
        self._cell = re.compile(f"({quoted}|{plain}|)(?:{delimiter}|$)")
        self._row = re.compile(cell + rest + end)
        self._opened = re.compile(f'(?:{cell}{delimiter})*+"{_INSIDE}')
        self._still_open = re.compile(f'{_INSIDE}(?:"(?:{delimiter}{cell})*{delimiter}"{_INSIDE})?+')
        self._closed = re.compile(f'{_INSIDE}"{rest}{end}')

    def cells(self, text: str) -> list[str]:
        """The cells of a row. Quotes that do not close properly are text.

        Args:
            text: The row, with or without the line breaks after it.
        """
        text = text.rstrip("\r\n")
        if '"' not in text or not self._row.fullmatch(text):
            return text.split(self.delimiter)
        found = []
        for match in self._cell.finditer(text):
            cell = match[1]
            found.append(cell[1:-1].replace('""', '"') if cell.startswith('"') else cell)
            if match.end() == match.end(1):  # no delimiter follows
                break
        return found

    def starts(self, file: BinaryIO) -> tuple[list[int], set[int]]:
        """Byte positions of all rows, and the rows that can be read in two ways.

        In a tab-separated file, a quoted cell whose lines each hold as many cells as the header may as well be that
        many rows. They are taken as rows, and the first, which begins with a quote, is ambiguous.

        Args:
            file: Read from its position to its end. Bytes are taken as Latin-1, in which every byte is a character, so
                that an encoding error is reported in its own row.

        Returns:
            The start of every row, header included, then the end of the last; and the numbers of ambiguous rows, the
            header being 0. A blank line belongs to the row before it.
        """
        starts: list[int] = []
        ambiguous: set[int] = set()
        position, columns = file.tell(), 0
        while line := file.readline():
            if not line.rstrip(b"\r\n"):
                position += len(line)
                continue
            starts.append(position)
            text = line.decode("latin-1")
            position += len(line)
            if b'"' in line and self._opened.fullmatch(text) and not self._row.fullmatch(text):
                lines = [text, *self._to_closing_quote(file)]
                if len(lines) > 1 and self.delimiter == "\t" and all(_count(one, "\t") == columns for one in lines):
                    ambiguous.add(len(starts) - 1)
                else:
                    position += sum(map(len, lines[1:]))
                file.seek(position)
            columns = columns or len(self.cells(text))
        return [*starts, position], ambiguous

    def _to_closing_quote(self, file: BinaryIO) -> Iterator[str]:
        """The lines to the one that closes the open quote and the row; none if the quote does not close properly."""
        lines = []
        for _ in range(MAX_LINES):
            line = file.readline().decode("latin-1")
            lines.append(line)
            if not line:
                return
            if self._closed.fullmatch(line):
                yield from lines
                return
            if not self._still_open.fullmatch(line):
                return


def _count(line: str, delimiter: str) -> int:
    return line.count(delimiter) + 1
