"""WebDataset tar shards: members with the same key form one sample; an index gives random access.

    000017.json  the record, in any layout of records.py   000017.jpg            its image
    000018.txt   or only a caption, .cls a label           000018.0.jpg, .1.jpg  several images, in order

The key is the file name up to its first dot (webdataset/webdataset, "The WebDataset Format"), unless names have dots
of their own: `v1.2.jpg` and `v1.2.txt` are one sample. The index is `<shard>.index.npz` next to the shard (to_shards
writes it), else in the cache.
"""

import contextlib
import io
import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmchat.data import storage
from mmchat.data.image_refs import ImageInShard, read_member
from mmchat.data.records import Rejected
from mmchat.data.row_layouts.shard_members import ANSWER, KEY, LABELS, QUESTION, TEXTS, is_image
from mmchat.errors import UserError
from mmchat.files import write_bytes

INDEX_SUFFIX = ".index.npz"
INDEX_VERSION = 2
"""Version of the index. Increase it when samples are formed in another way; other indexes are then rebuilt."""
_TEXT = ("json", *TEXTS, *LABELS)


class Member(NamedTuple):
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
            "version": np.int64(INDEX_VERSION),
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
    def load(cls, data: bytes) -> "ShardIndex | None":
        """Read an index file; None if it is of another version. Raises ValueError if the data is not an index."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                if "version" not in stored or int(stored["version"]) != INDEX_VERSION:
                    return None
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
        sample: dict[str, Any] = {KEY: key}
        try:
            for member in self._index.members(index):
                if member.extension in sample:
                    raise UserError(f"has two members .{member.extension}")
                sample[member.extension] = _content(path, member, f"{where}.{member.extension}")
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 text: {error.reason} at byte {error.start + 1}"
            return where, Rejected(where, key, problem, "not_utf8", error.object.decode("utf-8", "replace"))
        except UserError as error:
            return where, Rejected(where, key, str(error), error.kind)
        except (ValueError, RecursionError) as error:
            return where, Rejected(where, key, f"its .json is not an object: {error}", "invalid_json")
        return where, sample


def _content(path: str, member: Member, name: str) -> Any:
    """A member as `row_layouts.shard_members` takes it. Only texts are read."""
    kind = _kind(member)
    if is_image(member.extension):
        return ImageInShard(path, member.start, member.stop, name)
    if kind not in _TEXT:
        return f"<{member.stop - member.start:,} bytes>"
    data = read_member(path, member.start, member.stop)
    return json.loads(data) if kind == "json" else data.decode("utf-8").strip()


def open_index(path: str) -> ShardIndex:
    """The index of a shard: from the file next to it, from the cache, or newly built.

    Raises:
        UserError: The shard is not a tar file or is truncated, or the index next to it belongs to another file.
    """
    with storage.open_binary(path) as file:
        size = file.seek(0, os.SEEK_END)
    adjacent = path + INDEX_SUFFIX
    index = None
    if storage.exists(adjacent):
        try:
            index = ShardIndex.load(storage.read_bytes(adjacent))
        except (ValueError, OSError) as error:
            raise UserError(f"{adjacent} is damaged ({error}); delete it, it is then rebuilt") from None
    if index is not None:
        if index.size != size:
            raise UserError(f"{adjacent} belongs to a shard of {index.size} bytes, {path} has {size}; delete it")
        return index
    digest = storage.content_digest([path])
    cached = storage.cache_dir() / "shards" / f"{digest}{INDEX_SUFFIX}"
    with contextlib.suppress(OSError, ValueError):
        index = ShardIndex.load(cached.read_bytes())
    if index is None:
        index = index_shard(path, size)
        with contextlib.suppress(OSError):
            index.save(cached)
    return index


def index_shard(path: str, size: int) -> ShardIndex:
    """Build an index in one pass over the headers of a tar file. Raises UserError as `open_index`."""
    groups: dict[str, list[Member]] = {}  # members of one key need not be adjacent
    try:
        with storage.open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar):
                key, _, extension = _split(member.name)
                stop = member.offset_data + member.size
                if stop > size:
                    raise UserError(f"{path} is truncated inside {member.name}; copy it again")
                groups.setdefault(key, []).append(Member(sys.intern(extension.lower()), member.offset_data, stop))
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                # tarfile treats a missing end, and garbage after the first member, as the end.
                raise UserError(
                    f"{path} has no end-of-archive mark at byte {tar.offset}: truncated or damaged; copy it again"
                )
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a tar file, or is damaged: {error}") from None
    return _index(size, [sample for key, members in groups.items() for sample in split_dotted(key, members)])


def split_dotted(key: str, members: list[Member]) -> list[tuple[str, list[Member]]]:
    """The samples, each with its key, of members that have the same key up to the first dot.

    They are one sample unless names have dots of their own: then a text and an image have more than the key in common
    (`v1.2.jpg` and `v1.2.txt`), and each such name is a sample. `x.input.jpg` and `x.output.txt` are parts of one.
    """
    stems = [member.extension.rpartition(".")[0] for member in members]
    texts = {stem for stem, member in zip(stems, members, strict=True) if _kind(member) in _TEXT}
    if texts <= {"", *QUESTION, *ANSWER}:
        return [(key, members)]
    owners = [_owner(stem, texts) for stem in stems]
    pairs = list(zip(owners, members, strict=True))
    if not any(owner and is_image(member.extension) for owner, member in pairs):
        return [(key, members)]
    samples: dict[str, list[Member]] = {}
    for stem, (owner, member) in zip(stems, pairs, strict=True):
        own = stem if owner is None else owner
        extension = member.extension[len(own) + 1 :] if own else member.extension
        samples.setdefault(f"{key}.{own}" if own else key, []).append(member._replace(extension=extension))
    return list(samples.items())


def _owner(stem: str, texts: set[str]) -> str | None:
    """The longest of the texts' stems that a stem begins with: `2.0` in `v1.2.0.jpg` belongs to `2` of `v1.2.json`."""
    owners = [text for text in texts if stem == text or not text or stem.startswith(f"{text}.")]
    return max(owners, key=len, default=None)


def _kind(member: Member) -> str:
    return member.extension.rpartition(".")[2]


def _index(size: int, samples: list[tuple[str, list[Member]]]) -> ShardIndex:
    members = [member for _, found in samples for member in found]
    extensions = sorted({member.extension for member in members})
    place = {extension: number for number, extension in enumerate(extensions)}
    encoded = [key.encode("utf-8", "surrogateescape") for key, _ in samples]
    return ShardIndex(
        size=size,
        bounds=np.cumsum([0, *(len(found) for _, found in samples)]),
        spans=np.array([(member.start, member.stop) for member in members], np.int64).reshape(-1, 2),
        extension=np.array([place[member.extension] for member in members], np.int32),
        extensions=extensions,
        keys=np.cumsum([0, *map(len, encoded)]),
        key_bytes=b"".join(encoded),
    )


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
