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
from mmchat.data.doctor.record_checks import Examined
from mmchat.errors import UserError
from mmchat.files import read_json, write_bytes, write_json

KEY = "key.json"


@dataclass(frozen=True)
class Facts:
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
    def of(cls, examined: list[Examined], start: int) -> "Facts":
        """start: the first record's number."""
        seen = [
            (start + number, place, look)
            for number, one in enumerate(examined)
            for place, look in enumerate(one.looks)
            if look.digest is not None
        ]
        counts = np.array([(e.tokens, e.supervised, e.turns, len(e.looks)) for e in examined], np.uint32).reshape(-1, 4)
        return cls(
            np.array([one.sound for one in examined], bool),
            np.array([one.digest or (0, 0) for one in examined], np.uint64).reshape(-1, 2),
            *counts.T,
            np.array([number for number, _, _ in seen], np.uint32),
            np.array([place for _, place, _ in seen], np.uint32),
            np.array([look.digest for *_, look in seen], np.uint64).reshape(-1, 2),
            np.array([look.hash for *_, look in seen], np.uint64).reshape(-1, 2),
            np.array([(look.width, look.height) for *_, look in seen], np.uint32).reshape(-1, 2),
        )

    @classmethod
    def joined(cls, parts: list["Facts"]) -> "Facts":
        """One behind the other; `owner` must count through them."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))


class Parts:
    """The files of one pass, in a folder that belongs to one question: the same data, asked the same."""

    def __init__(self, directory: Path, key: str) -> None:
        """Parts that answer another question are deleted."""
        self.directory = directory
        with contextlib.suppress(UserError):
            if read_json(directory / KEY) == key:
                return
        self.delete()
        write_json(directory / KEY, key)

    def has(self, subject: int, start: int) -> bool:
        return self._path(subject, start).exists()

    def save(self, subject: int, start: int, examined: list[Examined]) -> None:
        found = [(start + number, *finding) for number, one in enumerate(examined) for finding in one.findings]
        # Lone surrogates stay readable as \\udXXX, which JSON writes the same way.
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found).encode(
            "utf-8", "backslashreplace"
        )
        facts = Facts.of(examined, start)
        buffer = io.BytesIO()
        np.savez(buffer, findings=np.frombuffer(lines, np.uint8), **vars(facts))
        write_bytes(self._path(subject, start), buffer.getvalue())

    def facts(self, subject: int, starts: Iterable[int]) -> Facts:
        names = [item.name for item in fields(Facts)]
        parts = []
        for start in starts:
            with np.load(self._path(subject, start), allow_pickle=False) as stored:
                parts.append(Facts(*(stored[name] for name in names)))
        return Facts.joined(parts)

    def findings(self, subject: int, start: int) -> Iterator[tuple[int, Finding]]:
        """The record's number and what was found, in order."""
        with np.load(self._path(subject, start), allow_pickle=False) as stored:
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

    def _path(self, subject: int, start: int) -> Path:
        return self.directory / f"{subject:03}-{start:010}.npz"
