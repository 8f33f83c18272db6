"""CSV and TSV with random access: one pass finds the position of every row; rows are parsed on access."""

from functools import cached_property
from typing import Any

import numpy as np

from mmchat.data import storage
from mmchat.data.delimited_rows import RowSyntax
from mmchat.data.image_refs import SHORTEST_BASE64, is_address
from mmchat.data.records import Rejected
from mmchat.errors import UserError
from mmchat.images import IMAGE_SUFFIXES

UTF8_BOM = b"\xef\xbb\xbf"
_INDEX, _IMAGE = "index", "image"
"""Columns of VLMEvalKit, in which the image of a row may be the index of another row."""
_INDEX_BYTES = 256
"""Bytes at the start of a row in which the first cell is looked for, before the whole row is read."""


class CsvTable:
    """Rows below a header line, comma-separated, or tab-separated in a `.tsv` (delimited_rows.py).

    Without a header, as Conceptual Captions publishes its lists (CC3M: caption, address; CC12M: address, caption), two
    columns are read if one of the first line is an image.
    """

    def __init__(self, path: str) -> None:
        self.files = [path]
        self._path = storage.local_copy(path)
        self._syntax = RowSyntax("\t" if path.lower().endswith(".tsv") else ",")
        with storage.open_binary(self._path) as file:
            if file.read(len(UTF8_BOM)) != UTF8_BOM:
                file.seek(0)
            offsets, self._ambiguous = self._syntax.starts(file)
        self._offsets = np.array(offsets, np.int64)
        try:
            first = self._cells(0) if len(offsets) > 1 else []
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 text: {error.reason} at byte {error.start + 1}"
            raise UserError(f"{path}: the first line {problem}") from None
        columns = _columns_without_header(first, path)
        self._header, self._first = (columns, 0) if columns else (first, 1)
        if len(self._header) < 2 or len(set(self._header)) < len(self._header):
            raise UserError(
                f"{path}: the first line must name two columns or more, each once, found {self._header!r:.80}"
            )

    def __len__(self) -> int:
        return max(len(self._offsets) - 1 - self._first, 0)  # without the end of the last row

    def row(self, index: int) -> tuple[str, Any]:
        where = f"{self.files[0]}:row {index + 1}"
        number = index + self._first
        try:
            values = self._cells(number)
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 text: {error.reason} at byte {error.start + 1}"
            return where, Rejected(where, "", problem, "not_utf8", error.object.decode("utf-8", "replace"))
        if number in self._ambiguous:
            problem = (
                "opens a quote that closes in a row below: either one cell with line breaks and tabs, or several rows; "
                "remove the quote, or write the cell without line breaks"
            )
            return where, Rejected(where, "", problem, "ambiguous_quote", self._syntax.delimiter.join(values))
        if len(values) != len(self._header):
            return where, Rejected(where, "", f"has {len(values)} columns, but the header has {len(self._header)}")
        row = {key: value for key, value in zip(self._header, values, strict=True) if value}
        if _INDEX in row and (image := row.get(_IMAGE, "").strip()).isdecimal() and len(image) <= SHORTEST_BASE64:
            return where, self._with_image_of(int(image), row, where)
        return where, row

    def _cells(self, number: int) -> list[str]:
        data = storage.read_bytes(self._path, *map(int, self._offsets[number : number + 2]))
        return self._syntax.cells(data.decode("utf-8"))

    def _with_image_of(self, index: int, row: dict[str, str], where: str) -> dict[str, str] | Rejected:
        """The row with the image of the row of that index (vlmeval/dataset/image_base.py of VLMEvalKit)."""
        number = self._numbers.get(index)
        if number is None:  # the name of a file
            return row
        try:
            image = dict(zip(self._header, self._cells(number), strict=False)).get(_IMAGE, "")
        except UnicodeDecodeError as error:
            problem = f"has the image of the row with index {index}, which is not UTF-8 text: {error.reason}"
            return Rejected(where, row[_INDEX], problem, "not_utf8")
        if len(image) <= SHORTEST_BASE64:
            problem = f"has the image of the row with index {index}, which holds {image!r:.80} and no image itself"
            return Rejected(where, row[_INDEX], problem)
        return {**row, _IMAGE: image}

    @cached_property
    def _numbers(self) -> dict[int, int]:
        """Index, as the rows spell it -> number of the row. Of equal ones the last counts, as in VLMEvalKit's dict."""
        column = self._header.index(_INDEX)
        numbers = {}
        for number in range(self._first, len(self._offsets) - 1):
            spelled = self._index_cell(number, column).strip()
            if spelled.isdecimal() and len(spelled) <= SHORTEST_BASE64:
                numbers[int(spelled)] = number
        return numbers

    def _index_cell(self, number: int, column: int) -> str:
        start, stop = map(int, self._offsets[number : number + 2])
        if column == 0:
            beginning, delimiter, _ = (
                storage.read_bytes(self._path, start, min(stop, start + _INDEX_BYTES))
                .decode("utf-8", "replace")
                .partition(self._syntax.delimiter)
            )
            if delimiter and '"' not in beginning:
                return beginning
        cells = self._syntax.cells(storage.read_bytes(self._path, start, stop).decode("utf-8", "replace"))
        return cells[column] if column < len(cells) else ""


def _columns_without_header(first: list[str], path: str) -> list[str]:
    """The columns of a file whose first line is a row; none if it may be a header.

    Raises:
        UserError: It is a row, and its columns cannot be known.
    """
    images = [number for number, cell in enumerate(first) if _is_image(cell)]
    if not images:
        return []
    if len(first) != 2 or len(images) == 2:
        raise UserError(
            f"{path} has no header: its first line holds {first[images[0]]!r:.80}; write the names of the columns "
            "above it, such as image and caption"
        )
    columns = ["caption", "caption"]
    columns[images[0]] = "url" if is_address(first[images[0]]) else _IMAGE
    return columns


def _is_image(cell: str) -> bool:
    name, dot, suffix = cell.strip().rpartition(".")
    return is_address(cell) or (bool(name and dot) and f".{suffix.lower()}" in IMAGE_SUFFIXES)
