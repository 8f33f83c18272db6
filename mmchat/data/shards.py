"""WebDataset tar shards: members with the same key form one sample; an index gives random access.

    000017.json  the record, in any layout of records.py   000017.jpg            its image
    000018.txt   or only a caption                         000018.0.jpg, .1.jpg  several images, in order

The key is the file name up to its first dot (webdataset/webdataset, "The WebDataset Format"). The index is
`<shard>.index.npz` next to the shard (to_shards writes it), else in the cache.
"""

import contextlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmchat.data import storage
from mmchat.data.image_refs import ImageInShard
from mmchat.data.records import Rejected
from mmchat.errors import UserError
from mmchat.files import write_bytes
from mmchat.images import IMAGE_SUFFIXES

INDEX_SUFFIX = ".index.npz"
_TEXT = ("txt", "caption")


@dataclass(frozen=True)
class Member:
    extension: str
    start: int
    stop: int


@dataclass
class ShardIndex:
    """Positions of all members of one shard.

    Attributes:
        size: Size of the shard in bytes.
        bounds: int64[samples + 1]; the members of sample i are [bounds[i], bounds[i + 1]).
        spans: int64[members, 2]; bytes [start, stop) of each member.
        extension: int32[members]; index into `extensions`.
        extensions: The distinct extensions.
        keys: int64[samples + 1]; the key of sample i is `key_bytes[keys[i]:keys[i + 1]]`.
        key_bytes: All keys, concatenated.
    """

    size: int
    bounds: np.ndarray
    spans: np.ndarray
    extension: np.ndarray
    extensions: list[str]
    keys: np.ndarray
    key_bytes: bytes

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def key(self, sample: int) -> str:
        start, stop = self.keys[sample : sample + 2].tolist()
        return self.key_bytes[start:stop].decode("utf-8", "surrogateescape")

    def members(self, sample: int) -> list[Member]:
        first, last = self.bounds[sample : sample + 2].tolist()
        return [Member(self.extensions[self.extension[i]], *self.spans[i].tolist()) for i in range(first, last)]

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {
            "size": np.int64(self.size),
            "bounds": self.bounds,
            "spans": self.spans,
            "extension": self.extension,
            "extensions": np.frombuffer("\n".join(self.extensions).encode(), np.uint8),
            "keys": self.keys,
            "key_bytes": np.frombuffer(self.key_bytes, np.uint8),
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, data: bytes) -> "ShardIndex":
        """Read an index file. Raises ValueError if the data is not an index."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                extensions = stored["extensions"].tobytes().decode().split("\n")
                arrays = {name: stored[name] for name in ("bounds", "spans", "extension", "keys")}
                key_bytes = stored["key_bytes"].tobytes()
                return cls(int(stored["size"]), **arrays, extensions=extensions, key_bytes=key_bytes)
        except (KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"not an index of a shard: {error}") from None


class TarTable:
    """The samples of one shard as a table of rows."""

    def __init__(self, path: str) -> None:
        self.files = [path]
        self._index = open_index(path)

    def __len__(self) -> int:
        return len(self._index)

    def row(self, index: int) -> tuple[str, Any]:
        path, key = self.files[0], self._index.key(index)
        where = f"{path}:{key}"
        members = self._index.members(index)
        images = [
            ImageInShard(path, m.start, m.stop, f"{where}.{m.extension}")
            for m in sorted(members, key=_image_number)
            if f".{m.extension.rpartition('.')[2]}" in IMAGE_SUFFIXES
        ]
        texts = {
            m.extension: storage.read_bytes(path, m.start, m.stop) for m in members if m.extension in ("json", *_TEXT)
        }
        try:
            item = dict(json.loads(texts.pop("json"))) if "json" in texts else _caption(texts)
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 text: {error.reason} at byte {error.start + 1}"
            return where, Rejected(where, "", problem, "not_utf8", error.object.decode("utf-8", "replace"))
        except (ValueError, TypeError, RecursionError) as error:
            return where, Rejected(where, "", f"its .json is not an object: {error}", "invalid_json")
        names = item.pop("image", None) or item.pop("images", None) or []
        item.pop("images", None)
        names = [names] if isinstance(names, str) else names
        if names and len(names) != len(images):
            return where, Rejected(where, key, f"its .json names {len(names)} images, the shard holds {len(images)}")
        return where, {"id": key, **item, "images": images}


def open_index(path: str) -> ShardIndex:
    """The index of a shard: from the file next to it, from the cache, or newly built.

    Raises:
        UserError: The shard is not a tar file or is truncated, or the index next to it belongs to another file.
    """
    with storage.open_binary(path) as file:
        size = file.seek(0, os.SEEK_END)
    adjacent = path + INDEX_SUFFIX
    if storage.exists(adjacent):
        try:
            index = ShardIndex.load(storage.read_bytes(adjacent))
        except (ValueError, OSError) as error:
            raise UserError(f"{adjacent} is damaged ({error}); delete it, it is then rebuilt") from None
        if index.size != size:
            raise UserError(f"{adjacent} belongs to a shard of {index.size} bytes, {path} has {size}; delete it")
        return index
    digest = storage.content_digest([path])
    cached = storage.cache_dir() / "shards" / f"{digest}{INDEX_SUFFIX}"
    with contextlib.suppress(OSError, ValueError):
        return ShardIndex.load(cached.read_bytes())
    index = index_shard(path, size)
    with contextlib.suppress(OSError):
        index.save(cached)
    return index


def index_shard(path: str, size: int) -> ShardIndex:
    """Build an index in one pass over the headers of a tar file. Raises UserError as `open_index`."""
    groups: dict[str, int] = {}
    rows: list[tuple[int, int, int, str]] = []  # sample, start, stop, extension
    try:
        with storage.open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar):
                key, _, extension = _split(member.name)
                stop = member.offset_data + member.size
                if stop > size:
                    raise UserError(f"{path} is truncated inside {member.name}; copy it again")
                rows.append((groups.setdefault(key, len(groups)), member.offset_data, stop, extension.lower()))
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                # tarfile treats a missing end, and garbage after the first member, as the end.
                raise UserError(
                    f"{path} has no end-of-archive mark at byte {tar.offset}: truncated or damaged; copy it again"
                )
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a tar file, or is damaged: {error}") from None
    rows.sort(key=lambda row: row[0])  # stable sort: members of one key need not be adjacent
    extensions = sorted({row[3] for row in rows})
    place = {extension: number for number, extension in enumerate(extensions)}
    encoded = [key.encode("utf-8", "surrogateescape") for key in groups]
    samples = np.array([row[0] for row in rows], np.int64)
    return ShardIndex(
        size=size,
        bounds=np.searchsorted(samples, np.arange(len(groups) + 1)),
        spans=np.array([row[1:3] for row in rows], np.int64).reshape(-1, 2),
        extension=np.array([place[row[3]] for row in rows], np.int32),
        extensions=extensions,
        keys=np.cumsum([0, *map(len, encoded)]),
        key_bytes=b"".join(encoded),
    )


def _caption(texts: dict[str, bytes]) -> dict[str, str]:
    text = next(iter(texts.values()), None)
    return {} if text is None else {"caption": text.decode("utf-8").strip()}


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Regular files of the archive. Clears the list in which tarfile keeps every header."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # typeshed lacks it
        if member.isfile() and not _split(member.name)[0].rpartition("/")[2].startswith("."):
            yield member


def _split(name: str) -> tuple[str, str, str]:
    """`a.b/c.0.jpg` -> `a.b/c`, `.`, `0.jpg`."""
    folder, slash, base = name.rpartition("/")
    key, dot, extension = base.partition(".")
    return folder + slash + key, dot, extension


def _image_number(member: Member) -> tuple[int, str]:
    number = member.extension.partition(".")[0]
    return (int(number), "") if number.isdecimal() else (0, member.extension)
