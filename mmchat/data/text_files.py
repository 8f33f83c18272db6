"""JSON and JSONL with random access: one pass finds the position of every record; records are parsed on access."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from mmchat.data import storage
from mmchat.data.records import Rejected
from mmchat.errors import UserError

BLOCK = 1 << 22
MAX_RECORD_BYTES = 1 << 27
"""Largest JSON value. A longer one means a broken array."""

_AFTER = tuple(" \t\r\n,]")
_OPENING, _SPACE = re.compile("\ufeff?\\s*\\["), re.compile(r"\s*")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]')
_UTF8_BOM = b"\xef\xbb\xbf"
_RECORD_KEYS = frozenset({"conversations", "conversation", "messages", "texts", "caption", "text"}) | {
    *("question", "query", "instruction", "prompt")
}
_ANNOTATIONS = (b'"annotations"', b'"questions"')
"""Keys of COCO's and VQAv2's files, which are one object."""

_decoder = json.JSONDecoder(parse_int=str, parse_float=str)
"""Finds where values end. It converts no numbers: one of more than 4,300 digits (sys.set_int_max_str_digits) is the
mistake of its own record."""


class JsonTable:
    """A JSON array of records, or one record per line."""

    def __init__(self, path: str) -> None:
        self.files = [path]
        self._path = storage.local_copy(path)
        with storage.open_binary(self._path) as file:
            self._lines = not _is_array(file, path)
            find = _spans_of_lines if self._lines else _spans_of_array
            spans = np.fromiter((n for span in find(file, path) for n in span), np.int64).reshape(-1, 3)
        self._spans = np.ascontiguousarray(spans)

    def __len__(self) -> int:
        return len(self._spans)

    def row(self, index: int) -> tuple[str, Any]:
        start, stop, number = self._spans[index].tolist()
        where = f"{self.files[0]}:{number}" if self._lines else f"{self.files[0]}:record {number}"
        data = storage.read_bytes(self._path, start, stop)
        try:
            return where, json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            kind, problem = "not_utf8", f"is not UTF-8 text: {error.reason} at byte {error.start + 1}"
        except json.JSONDecodeError as error:
            kind, problem = "invalid_json", f"invalid JSON: {_problem(error)}"
        except ValueError as error:  # a number of more digits than Python converts
            kind, problem = "invalid_json", f"invalid JSON: {error}"
        except RecursionError:
            kind, problem = "invalid_json", "invalid JSON: nested too deeply"
        return where, Rejected(where, "", problem, kind, data.decode("utf-8", "replace"))


def _is_array(file: BinaryIO, path: str) -> bool:
    """Whether a JSON file begins with "[". Rewinds the file."""
    beginning = file.read(1 << 12).removeprefix(_UTF8_BOM).lstrip()
    file.seek(0)
    if beginning[:1] != b"[" and not path.lower().endswith(".jsonl"):
        first = file.readline().removeprefix(_UTF8_BOM)
        file.seek(0)
        # One object per line is accepted under any file name; a single value is not.
        if not _is_record(first):
            kind = "an object" if beginning[:1] == b"{" else "something else"
            problem = f"data file {path} must hold a JSON array of records or one record per line, found {kind}"
            if any(key in first[: 1 << 20] or key in beginning for key in _ANNOTATIONS):
                problem += "; annotations as of COCO and VQAv2 are converted by data_tools/convert.py"
            raise UserError(problem)
    return beginning[:1] == b"["


def _is_record(line: bytes) -> bool:
    """Whether a line is an object with a key of a record. One that is too deep or too long for Python is, if it names
    such a key: it is refused by itself."""
    try:
        found = _decoder.decode(line.decode("utf-8"))
    except RecursionError:
        return line[:1] == b"{" and any(f'"{key}"'.encode() in line for key in _RECORD_KEYS)
    except ValueError:
        return False
    return isinstance(found, dict) and bool(_RECORD_KEYS & found.keys())


def _spans_of_lines(file: BinaryIO, path: str) -> Iterator[tuple[int, int, int]]:
    """Start, stop and number (from 1) of every line that is not blank."""
    position = 0
    for number, line in enumerate(file, 1):
        start, position = position, position + len(line)
        if number == 1 and line.startswith(_UTF8_BOM):
            start += len(_UTF8_BOM)
        if not line.isspace():
            yield start, position, number


def _spans_of_array(file: BinaryIO, path: str) -> Iterator[tuple[int, int, int]]:
    """Start, stop and number (from 1) of every element of a JSON array.

    Raises:
        UserError: The array is broken. The rest of it cannot be read reliably.
    """
    window = _Window(file, path)
    window.skip(_OPENING)
    window.skip(_SPACE)
    number = 0
    more = window.next() != "]"
    while more:
        number += 1
        start = window.offset()
        window.value()
        yield start, window.offset(), number
        window.skip(_SPACE)
        if window.next() not in (",", "]"):
            raise window.broken("Expecting ',' delimiter")
        if more := window.next() == ",":
            window.position += 1
            window.skip(_SPACE)
    window.position += 1
    window.skip(_SPACE)
    if window.next():
        raise window.broken("Extra data")


class _Window:
    """A window that moves forward over a JSON text and knows the byte offset of its position in the file."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.file, self.path = file, path
        self.text, self.position = "", 0
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._json = _decoder
        self._counted, self._bytes, self._lines = 0, 0, 1  # characters up to which bytes and lines are counted
        self._ended = False

    def offset(self) -> int:
        passed = self.text[self._counted : self.position]
        self._bytes += len(passed.encode("utf-8"))
        self._lines += passed.count("\n")
        self._counted = self.position
        return self._bytes

    def next(self) -> str:
        """The character at the position; "" at the end of the file."""
        return self.text[self.position : self.position + 1]

    def skip(self, pattern: re.Pattern) -> None:
        """Move past a match of `pattern` at the position. It may match the empty string."""
        while True:
            match = pattern.match(self.text, self.position)
            if (match is None or match.end() == len(self.text)) and self._more():
                continue
            self.position = match.end() if match else self.position
            return

    def value(self) -> None:
        """Move past the value at the position."""
        while True:
            try:
                _, end = self._json.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                inside = error.pos - self.position
                if len(self.text) - self.position < MAX_RECORD_BYTES and self._more():
                    continue
                self.position += inside
                raise self.broken(error.msg.removesuffix(" at")) from None
            except RecursionError:
                end = self._end_of_brackets()
            after, length = self.text[end : end + 1], end - self.position
            if after not in _AFTER and self._more():
                continue  # a number may continue in the next block
            self.position += length  # not `end`: at the end of the file `_more` has moved the text
            return

    def _end_of_brackets(self) -> int:
        """The end of an object or array that is nested too deeply to be parsed; its own row refuses it."""
        depth = 0
        for match in _BRACKETS.finditer(self.text, self.position):
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(match[0], 0)
            if depth == 0:
                return match.end()
        if len(self.text) - self.position < MAX_RECORD_BYTES and self._more():
            return self._end_of_brackets()
        raise self.broken("a value is nested too deeply, and does not end")

    def _more(self) -> bool:
        """Read on, doubling the window, so that a long value is parsed only a few times."""
        if self._ended:
            return False
        self.offset()
        self.text, self.position, self._counted = self.text[self.position :], 0, 0
        block = self.file.read(max(BLOCK, 2 * len(self.text)))
        self._ended = not block
        try:
            self.text += self._decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise UserError(f"data file {self.path} is not UTF-8 text: {error}") from None
        return not self._ended

    def broken(self, problem: str) -> UserError:
        """An error about the text at the position, with its line and column in the file."""
        end = self.offset()
        self.file.seek(max(0, end - BLOCK))
        line = self.file.read(min(end, BLOCK)).rpartition(b"\n")[2].decode("utf-8", "replace")
        return UserError(
            f"{self.path}:{self._lines}: invalid JSON: {problem} at column {len(line) + 1}; "
            "a broken array cannot be read in part: fix it, or store one record per line as .jsonl"
        )


def _problem(error: json.JSONDecodeError) -> str:
    """The message without the "at" that some of json's messages end with."""
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"
