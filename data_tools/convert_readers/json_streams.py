"""Reads large JSON files as streams of items (ijson), and keeps an index on disk.

Memory does not grow with the file; annotation files can have gigabytes.
"""

import io
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from mmchat.errors import UserError
from mmchat.extras import require

_BOM = b"\xef\xbb\xbf"
_KEYS_SHOWN = 6


class MeteredFile(io.RawIOBase):
    """A binary file that reports the number of bytes read."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file, self._advance = file, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        number = self._file.readinto(buffer)
        self._advance(number)
        return number


def read_list(path: Path, key: str, advance: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """(where, item) for the items of a top-level array, or of the array under `key` in a top-level object.

    Raises:
        UserError: the file is missing, is not JSON (raised when the invalid part is reached), has another layout, or
            the array is empty.
    """
    number = 0
    with _opened(path, "{" if key else "[", advance) as file:
        for number, item in enumerate(_ijson().items(file, f"{key}.item" if key else "item", use_float=True), 1):
            yield f"{path.name} item {number}", item
    if not number:
        raise UserError(f'{path} has no items under "{key}": {_layout(path)}' if key else f"{path} is an empty array")


def read_object(path: Path, advance: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """(key, value) of a top-level object. Raises UserError as `read_list` does."""
    empty = True
    with _opened(path, "{", advance) as file:
        for key, value in _ijson().kvitems(file, "", use_float=True):
            empty = False
            yield key, value
    if empty:
        raise UserError(f"{path} is an empty object")


def read_scalar(path: Path, key: str) -> Any:
    """One value of a top-level object; the rest of the file is not read.

    Raises:
        UserError: as in `read_list`, or the key is missing.
    """
    with _opened(path, "{", lambda n: None) as file:
        for prefix, event, value in _ijson().parse(file, use_float=True):
            if prefix == key and event in ("string", "number"):
                return value
    raise UserError(f'{path} has no "{key}": {_layout(path)}')


@contextmanager
def _opened(path: Path, opening: str, advance: Callable[[int], None]) -> Iterator[MeteredFile]:
    """The file after an optional byte order mark, if it starts as expected. Parser errors become UserError."""
    try:
        with path.open("rb") as file:
            if file.read(len(_BOM)) != _BOM:
                file.seek(0)
            first = file.peek(4096).lstrip()[:1].decode("latin-1")
            if first not in ("[", "{"):
                raise UserError(f"{path} is not JSON: it starts with {file.peek(20)[:20]!r}")
            if first != opening:
                wanted = {"[": "an array of items", "{": "an object"}[opening]
                raise UserError(f"{path} has another layout: expected {wanted}, found {_layout(path)}")
            try:
                yield MeteredFile(file, advance)
            except (_ijson().JSONError, UnicodeDecodeError) as error:
                problem = str(error).removeprefix("b'").splitlines()[0].split("\\n")[0].strip()
                raise UserError(
                    f"{path}: invalid JSON before byte {file.tell():,} ({problem}); "
                    "the download may be incomplete: download the file again"
                ) from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, expected a JSON file") from None


def _layout(path: Path) -> str:
    """The top level of a JSON file, for messages."""
    with path.open("rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        if file.peek(4096).lstrip().startswith(b"["):
            return "an array"
        try:
            events = _ijson().parse(file)
            keys = list(islice((v for prefix, e, v in events if not prefix and e == "map_key"), _KEYS_SHOWN + 1))
        except _ijson().JSONError:
            return "broken JSON"
    shown = ", ".join(keys[:_KEYS_SHOWN]) + (", ..." if len(keys) > _KEYS_SHOWN else "")
    return f"an object with the keys {shown}" if keys else "an empty object"


def _ijson() -> ModuleType:
    require("ijson")
    import ijson

    return ijson


class DiskIndex:
    """A map of keys to texts in a temporary SQLite file, to join two files in any order without holding them."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # private, on disk, deleted when closed
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def add(self, key: Any, value: str) -> bool:
        """Add an entry. Returns False and changes nothing if the key exists."""
        return self._database.execute("INSERT OR IGNORE INTO entries VALUES (?, ?)", (str(key), value)).rowcount == 1

    def get(self, key: Any) -> str | None:
        row = self._database.execute("SELECT value FROM entries WHERE key = ?", (str(key),)).fetchone()
        return row[0] if row else None

    def pop(self, key: Any) -> str | None:
        value = self.get(key)
        if value is not None:
            self._database.execute("DELETE FROM entries WHERE key = ?", (str(key),))
        return value

    def keys(self) -> Iterator[str]:
        return (key for (key,) in self._database.execute("SELECT key FROM entries ORDER BY key"))
