"""What was found out about every record, in files of one chunk each: the pass can be killed and goes on.

Only arrays of fixed width are held for the whole of a data set: about 80 bytes a record with one image.
"""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from mmchat.data.doctor.findings import Finding
from mmchat.data.doctor.record_checks import CheckedRecord
from mmchat.errors import UserError
from mmchat.files import as_json_line, read_json, write_bytes, write_json

KEY = "key.json"


@dataclass(frozen=True)
class RecordStats:
    """Of n records and their p decoded images.

    sound: bool[n]. digest: uint64[n, 2], zeros where there is none. tokens, supervised, turns, images: uint32[n].
    owner, place: uint32[p], whose image it is, and which of the record's. image_digest, hash: uint64[p, 2].
    size: uint32[p, 2], width and height.
    """

    sound: np.ndarray
    digest: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    turns: np.ndarray
    images: np.ndarray
    owner: np.ndarray
    place: np.ndarray
    image_digest: np.ndarray
    hash: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.sound)

    @classmethod
    def of(cls, checked: list[CheckedRecord], start: int) -> "RecordStats":
        """start: the first record's number."""
        seen = [
            (start + number, place, check)
            for number, one in enumerate(checked)
            for place, check in enumerate(one.image_checks)
            if check.digest is not None
        ]
        counts = np.array([(e.tokens, e.supervised, e.turns, len(e.image_checks)) for e in checked], np.uint32).reshape(
            -1, 4
        )
        return cls(
            np.array([one.sound for one in checked], bool),
            np.array([one.digest or (0, 0) for one in checked], np.uint64).reshape(-1, 2),
            *counts.T,
            np.array([number for number, _, _ in seen], np.uint32),
            np.array([place for _, place, _ in seen], np.uint32),
            np.array([check.digest for *_, check in seen], np.uint64).reshape(-1, 2),
            np.array([check.hash for *_, check in seen], np.uint64).reshape(-1, 2),
            np.array([(check.width, check.height) for *_, check in seen], np.uint32).reshape(-1, 2),
        )

    @classmethod
    def joined(cls, parts: list["RecordStats"]) -> "RecordStats":
        """One behind the other; `owner` must count through them."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))


class PartialResults:
    """The files of one pass, in a folder that belongs to one request: the same data, asked the same."""

    def __init__(self, directory: Path, key: str) -> None:
        """Results of another request are deleted."""
        self.directory = directory
        with contextlib.suppress(UserError):
            if read_json(directory / KEY) == key:
                return
        self.delete()
        write_json(directory / KEY, key)

    def has(self, source: int, start: int) -> bool:
        return self._path(source, start).exists()

    def save(self, source: int, start: int, checked: list[CheckedRecord]) -> None:
        found = [(start + number, *finding) for number, one in enumerate(checked) for finding in one.findings]
        lines = b"".join(map(as_json_line, found))
        stats = RecordStats.of(checked, start)
        buffer = io.BytesIO()
        np.savez(buffer, findings=np.frombuffer(lines, np.uint8), **vars(stats))
        write_bytes(self._path(source, start), buffer.getvalue())

    def stats(self, source: int, starts: Iterable[int]) -> RecordStats:
        names = [item.name for item in fields(RecordStats)]
        parts = []
        for start in starts:
            with np.load(self._path(source, start), allow_pickle=False) as stored:
                parts.append(RecordStats(*(stored[name] for name in names)))
        return RecordStats.joined(parts)

    def findings(self, source: int, start: int) -> Iterator[tuple[int, Finding]]:
        """The record's number and what was found, in order."""
        with np.load(self._path(source, start), allow_pickle=False) as stored:
            lines = stored["findings"].tobytes().decode("utf-8")
        for line in lines.split("\n")[:-1]:
            number, *finding = json.loads(line)
            yield number, Finding(*finding)

    def delete(self) -> None:
        # The key first, lest what is left be taken for a pass to go on with. Nothing of others: the user chose
        # the folder.
        (self.directory / KEY).unlink(missing_ok=True)
        for pattern in ("[0-9][0-9][0-9]-[0-9]*.npz", ".*.npz.*.tmp", f".{KEY}.*.tmp"):
            for path in self.directory.glob(pattern):
                path.unlink()
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _path(self, source: int, start: int) -> Path:
        return self.directory / f"{source:03}-{start:010}.npz"
