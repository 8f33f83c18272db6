"""Results of a check on disk, one file per chunk, so that a killed check can resume.

Only fixed-width arrays are held in memory for the whole data set: about 80 bytes per record with one image.
"""

import contextlib
import io
import json
from collections import Counter
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
    """Columns about n records and their p decoded images.

    Attributes:
        sound: bool[n]; the record has no error.
        digest: uint64[n, 2]; of images and text, zeros if unknown.
        tokens: uint32[n].
        supervised: uint32[n]; supervised tokens.
        turns: uint32[n].
        images: uint32[n]; number of images.
        owner: uint32[p]; the record of each image.
        place: uint32[p]; its index within the record.
        image_digest: uint64[p, 2]; of the encoded bytes.
        hash: uint64[p, 2]; difference hashes, zeros if the image has too little content.
        size: uint32[p, 2]; width and height.
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
        """Stats of checked records; the first has the number `start`."""
        images = [
            (start + number, place, check)
            for number, one in enumerate(checked)
            for place, check in enumerate(one.image_checks)
            if check.digest is not None
        ]
        counts = [(one.tokens, one.supervised, one.turns, len(one.image_checks)) for one in checked]
        tokens, supervised, turns, images_of_record = np.array(counts, np.uint32).reshape(-1, 4).T
        return cls(
            np.array([one.sound for one in checked], bool),
            np.array([one.digest or (0, 0) for one in checked], np.uint64).reshape(-1, 2),
            tokens,
            supervised,
            turns,
            images_of_record,
            np.array([number for number, _, _ in images], np.uint32),
            np.array([place for _, place, _ in images], np.uint32),
            np.array([check.digest for *_, check in images], np.uint64).reshape(-1, 2),
            np.array([check.hash for *_, check in images], np.uint64).reshape(-1, 2),
            np.array([(check.width, check.height) for *_, check in images], np.uint32).reshape(-1, 2),
        )

    @classmethod
    def joined(cls, parts: list["RecordStats"]) -> "RecordStats":
        """Concatenate. `owner` must already count through all parts."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))


class PartialResults:
    """The files of one check in a folder. They belong to one key: the same data and settings."""

    def __init__(self, directory: Path, key: str) -> None:
        """Open the folder. Results with another key are deleted."""
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
        unread = as_json_line(Counter(key for one in checked for key in one.unread_keys))
        texts = {"findings": np.frombuffer(lines, np.uint8), "unread_keys": np.frombuffer(unread, np.uint8)}
        stats = RecordStats.of(checked, start)
        buffer = io.BytesIO()
        np.savez(buffer, **texts, **vars(stats))  # type: ignore[arg-type]
        write_bytes(self._path(source, start), buffer.getvalue())

    def stats(self, source: int, starts: Iterable[int]) -> RecordStats:
        names = [item.name for item in fields(RecordStats)]
        parts = []
        for start in starts:
            with np.load(self._path(source, start), allow_pickle=False) as stored:
                parts.append(RecordStats(*(stored[name] for name in names)))
        return RecordStats.joined(parts)

    def unread_keys(self, source: int, starts: Iterable[int]) -> Counter[str]:
        """How many records hold each key that is not read."""
        total: Counter[str] = Counter()
        for start in starts:
            with np.load(self._path(source, start), allow_pickle=False) as stored:
                total.update(json.loads(stored["unread_keys"].tobytes()))
        return total

    def findings(self, source: int, start: int) -> Iterator[tuple[int, Finding]]:
        """Record number and finding, in order."""
        with np.load(self._path(source, start), allow_pickle=False) as stored:
            lines = stored["findings"].tobytes().decode("utf-8")
        for line in lines.split("\n")[:-1]:
            number, *finding = json.loads(line)
            yield number, Finding(*finding)

    def delete(self) -> None:
        # The key first, so that an interrupted deletion cannot be resumed from. Only our own files: the user chose
        # the folder.
        (self.directory / KEY).unlink(missing_ok=True)
        for pattern in ("[0-9][0-9][0-9]-[0-9]*.npz", ".*.npz.*.tmp", f".{KEY}.*.tmp"):
            for path in self.directory.glob(pattern):
                path.unlink()
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _path(self, source: int, start: int) -> Path:
        return self.directory / f"{source:03}-{start:010}.npz"
