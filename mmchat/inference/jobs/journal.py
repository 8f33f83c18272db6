"""`Journal`: the JSON lines of a job. A process that is killed at any moment leaves one from which it resumes."""

import fcntl
import json
import os
import shutil
from array import array
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mmchat.errors import UserError
from mmchat.files import as_json_line, atomic_file, writing
from mmchat.inference.jobs.digests import DigestSet
from mmchat.inference.jobs.items import Item, Line, Outcome


class Journal:
    """One line per item: its key with the answer or an `error`.

    Opening it reads the file once. Of every answered item a digest is kept in memory, and nothing else. Lines of items
    that failed are removed, since they are tried again, and so is a last line that a killed process left incomplete.
    Until the whole file was read and found to be a journal of this job, nothing is changed.

    Args:
        path: The file; its folder is created if missing.
        key: Fields of a line that identify its item; the first is a text.
        fields: Fields of an answer. A line may have others too.
        seen: Called with every line of an earlier process that is kept.

    Raises:
        UserError: The file holds something else, or another process writes it.
    """

    def __init__(
        self,
        path: Path,
        key: tuple[str, ...],
        fields: tuple[str, ...],
        seen: Callable[[Line], None] = lambda line: None,
    ) -> None:
        self.path, self.key, self.fields, self._seen = path, key, fields, seen
        self._start = f'{{"{key[0]}": "'.encode()
        self.answered = DigestSet()
        """Names of items with an answer from an earlier process."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_locked(path)
        try:
            self._file = self._cleaned(*self._read())
        except BaseException:
            self._file.close()
            raise

    def append(self, item: Item, outcome: Outcome) -> Line:
        """Write the line of an item, and pass it to the operating system. Returns the line."""
        line = item.key | item.kept | outcome.answer
        with writing(self.path):
            self._file.write(as_json_line(line))
            self._file.flush()
        return line

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if self._file.seek(0, os.SEEK_END) == 0:
                self.path.unlink(missing_ok=True)  # a job that failed before its first line leaves no file

    def _read(self) -> tuple["array[int]", int]:
        """Note which items are answered. Returns start and stop of every line to drop, and where the last one ends."""
        dropped = array("q")
        position = number = 0
        self._file.seek(0)
        for number, text in enumerate(self._file, 1):
            stop = position + len(text)
            if not text.endswith(b"\n") and (text.startswith(self._start) or self._start.startswith(text)):
                break  # the beginning of a line of ours
            line = self._parse(text, number)
            if "error" in line or not self.answered.add([line[field] for field in self.key]):
                dropped.extend((position, stop))
            else:
                self._seen(line)
            position = stop
        return dropped, position

    def _parse(self, text: bytes, number: int) -> Line:
        try:
            line = json.loads(text)
            known = ({*self.key, *self.fields} <= line.keys()) or ({*self.key, "error"} <= line.keys())
            if not (known and text.endswith(b"\n")):
                raise ValueError
        except (ValueError, AttributeError):
            raise UserError(
                f"{self.path}:{number} is not a line of this job, so the file is not overwritten; choose another --out"
            ) from None
        return line

    def _cleaned(self, dropped: "array[int]", end: int) -> BinaryIO:
        """The file without these parts and without what follows `end`, open for appending."""
        if not dropped:
            if end < self._file.seek(0, os.SEEK_END):
                self._file.truncate(end)
            self._file.seek(end)
            return self._file
        edges = [0, *dropped, end]
        with atomic_file(self.path) as copy:
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                self._file.seek(start)
                _copy(self._file, copy, stop - start)
        self._file.close()
        file = _open_locked(self.path)
        file.seek(0, os.SEEK_END)
        return file


def remove_journal(path: Path, seen: Callable[[Line], None] = lambda line: None) -> None:
    """Delete a journal that no other process writes.

    Args:
        path: The file, which may be missing.
        seen: Called with every line before that.

    Raises:
        UserError: Another process writes it, or a line is not JSON.
    """
    if not path.exists():
        return
    with _open_locked(path) as file:
        for number, text in enumerate(file, 1):
            try:
                if text.endswith(b"\n"):  # else a killed process wrote the beginning of a line
                    seen(json.loads(text))
            except ValueError:
                raise UserError(
                    f"{path}:{number} is not JSON, so the file is not overwritten; choose another --out"
                ) from None
        path.unlink()


def _open_locked(path: Path) -> BinaryIO:
    """Open a file for reading and writing that no other process writes meanwhile.

    The lock belongs to the process and ends with it, however it ends.
    """
    while True:
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except IsADirectoryError:
            raise UserError(f"{path} is a folder; --out must be a file") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(
                f"{path} is being written by another process; wait for it, or choose another --out"
            ) from None
        except OSError:
            pass  # a file system without locks
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # it was replaced in between


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    block = shutil.COPY_BUFSIZE  # type: ignore[attr-defined]  # typeshed lacks it
    while length > 0 and (data := source.read(min(length, block))):
        target.write(data)
        length -= len(data)
