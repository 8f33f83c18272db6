"""The feature cache on disk: computed once by a frozen tower, read in every epoch. Imports no torch.

A store is a folder of shards. All records have one shape and type. Every writer makes its own shards, so any number of
processes may write at the same time. A shard is

    concatenated records | their keys, 16 bytes each | their CRC-32, 4 bytes each | trailer (`_TRAILER`)

and is written to a temporary file, then renamed. Its index is verified when the store is opened, a record when it is
read.
"""

import hashlib
import struct
import time
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmchat.data.image_refs import ImageRef
from mmchat.errors import UserError
from mmchat.files import write_bytes
from mmchat.images import image_size, load_image
from mmchat.vision import TowerSpec

DTYPES: dict[str, np.dtype] = {"fp32": np.dtype("<f4"), "bf16": np.dtype("<u2")}
"""Storage types. NumPy has no bfloat16, so its bits are stored as integers."""
SHARD_BYTES = 64 << 20
"""Size of a shard in bytes. Records are in memory until their shard is written; a killed process loses them."""
NO_FEATURES = "no_features"
"""`UserError.kind` of errors caused by the store and not by the record."""

_KEY_BYTES = 16
_KEY = np.dtype(f"V{_KEY_BYTES}")
_SUM = np.dtype("<u4")
_TRAILER = struct.Struct("<8sQQI")
"""Magic, number of records, bytes per record, CRC-32 of keys and checksums."""
_MAGIC = b"mmfeat-1"
_ABANDONED_SECONDS = 3600
"""A temporary file older than this is taken as left by a killed writer."""


def image_key(data: bytes) -> bytes:
    """Key of an image: the 16-byte BLAKE2b of its encoded bytes."""
    return hashlib.blake2b(data, digest_size=_KEY_BYTES).digest()


def view_keys(data: bytes, spec: TowerSpec, name: str, several: bool) -> list[bytes]:
    """Keys of a tower's views of an image: the image's key for a single view, else its hash with the view's number.

    Args:
        data: The encoded bytes.
        spec: Spec of the tower.
        name: Name of the image in error messages.
        several: Whether its record has several images.

    Raises:
        UserError: The number of views depends on image size, and the image has no readable header.
    """
    key = image_key(data)
    if spec.preprocessing.tiling is None:
        return [key]
    views = spec.views(image_size(data, name=name), several)
    if several and spec.preprocessing.tiling.one_view_if_several:  # which is none of the views of an image alone
        key += b"several"
    return [image_key(key + number.to_bytes(4, "little")) for number in range(views)]


def key_array(keys: Sequence[bytes]) -> np.ndarray:
    """Keys as an array void[n], which NumPy can sort and compare."""
    return np.frombuffer(b"".join(keys), _KEY)


class FeatureStore:
    """Reads the shards that a folder holds at the time of opening. Damaged shards are ignored; `damaged` lists them.

    Args:
        folder: The folder of shards.
        shape: Shape of a record, [tokens, width].
        stored_as: Key of `DTYPES`.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], stored_as: str) -> None:
        self.folder, self.shape, self.stored_as = folder, shape, stored_as
        self.dtype = DTYPES[stored_as]
        self.record_bytes = shape[0] * shape[1] * self.dtype.itemsize
        self.damaged: list[Path] = []
        self._shards: list[Path] = []
        indexes = []
        for path in sorted(folder.glob("*.shard")):
            index = _read_index(path, self.record_bytes)
            if index is None:
                self.damaged.append(path)
            else:
                self._shards.append(path)
                indexes.append(index)
        keys = np.concatenate([key_array([]), *(keys for keys, _ in indexes)])
        sums = np.concatenate([np.empty(0, _SUM), *(sums for _, sums in indexes)])
        counts = [len(keys) for keys, _ in indexes]
        shards = np.repeat(np.arange(len(counts)), counts)
        rows = np.concatenate([np.empty(0, np.int64), *map(np.arange, counts)])
        # Sorted for binary search. If two processes have written an image, one record is kept.
        self._keys, first = np.unique(keys, return_index=True)
        self._sums, self._shard_of, self._row_of = sums[first], shards[first], rows[first]

    def __len__(self) -> int:
        return len(self._keys)

    def reopened(self) -> "FeatureStore":
        """The same store, including shards written since."""
        return FeatureStore(self.folder, self.shape, self.stored_as)

    def has(self, keys: np.ndarray) -> np.ndarray:
        """bool[n]: which of the keys (see `key_array`) are stored."""
        if not len(self):
            return np.zeros(len(keys), bool)
        return self._keys[self._at(keys)] == keys

    def read(self, key: bytes) -> np.ndarray:
        """The features of one view, memory-mapped: dtype[tokens, width].

        Raises:
            KeyError: The key is not stored.
            UserError: The shard is gone, or the record is damaged; a damaged shard is deleted.
        """
        wanted = key_array([key])
        if not self.has(wanted)[0]:
            raise KeyError(key)
        at = self._at(wanted)[0]
        path = self._shards[self._shard_of[at]]
        # Mapped per record: a large store has more shards than a process may have open files.
        try:
            offset = int(self._row_of[at]) * self.record_bytes
            record = np.memmap(path, self.dtype, "r", offset, self.shape)
        except (OSError, ValueError) as error:
            raise UserError(
                f"features in {path} cannot be read: {error}; all ranks must see that folder, and its files "
                "must not be deleted during a run. Start again with --resume",
                NO_FEATURES,
            ) from None
        if zlib.crc32(record.data) != self._sums[at]:
            path.unlink(missing_ok=True)
            raise UserError(
                f"features in {path} are damaged, so the file was deleted; start again with --resume, which "
                "recomputes them",
                NO_FEATURES,
            )
        return record

    def _at(self, keys: np.ndarray) -> np.ndarray:
        return np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)


class FeatureWriter:
    """Adds records to a store's folder in shards. `flush` writes the last one. `written` counts bytes of records."""

    def __init__(self, store: FeatureStore, shard_bytes: int = SHARD_BYTES) -> None:
        self.written = 0
        self._store, self._shard_bytes = store, shard_bytes
        self._keys: list[bytes] = []
        self._records: list[bytes] = []

    def add(self, key: bytes, features: np.ndarray) -> None:
        """Add a record. Raises OSError if a shard cannot be written; no part of it remains on disk."""
        assert features.shape == self._store.shape
        assert features.dtype == self._store.dtype
        self._keys.append(key)
        self._records.append(features.tobytes())
        if len(self._records) * self._store.record_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        if not self._records:
            return
        keys, records = b"".join(self._keys), self._records
        sums = np.array([zlib.crc32(record) for record in records], _SUM).tobytes()
        end = _TRAILER.pack(_MAGIC, len(records), self._store.record_bytes, zlib.crc32(keys + sums))
        write_bytes(self._store.folder / f"{uuid.uuid4().hex}.shard", b"".join([*records, keys, sums, end]))
        self.written += len(records) * self._store.record_bytes
        self._keys, self._records = [], []


class ImageFeatures:
    """Reads the features of a record's images, from one store per tower.

    Args:
        stores: The stores, in the order of the towers. A record of a store is one view.
        spec: Spec of any tower: all have the same views of an image.
    """

    def __init__(self, stores: list[FeatureStore], spec: TowerSpec) -> None:
        self.stores, self.spec = stores, spec

    def read(self, image: ImageRef, several: bool = False) -> list[np.ndarray]:
        """Features of an image: dtype[views, tokens, width] per tower.

        Args:
            image: The image.
            several: Whether its record has several images.

        Raises:
            UserError: The image cannot be read or decoded, or has no features in the stores.
        """
        data = image.read()
        keys = view_keys(data, self.spec, image.name, several)
        try:
            return [np.stack([store.read(key) for key in keys]) for store in self.stores]
        except KeyError:
            load_image(data, name=image.name)  # An image that cannot be decoded was never given features; say so.
            raise UserError(
                f"image {image.name} has no features in {self.stores[0].folder.parent}: the file has changed "
                "since the run started. Start again with --resume, which computes them",
                NO_FEATURES,
            ) from None


def remove_damaged_shards(store: FeatureStore) -> None:
    """Delete damaged shards and the temporary files of killed writers."""
    for path in store.damaged:
        path.unlink(missing_ok=True)
    for path in store.folder.glob(".*.shard.*.tmp"):
        if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            path.unlink(missing_ok=True)


def _read_index(path: Path, record_bytes: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys and checksums of a shard's records; None if the shard is truncated, damaged or of another shape."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < _TRAILER.size:
            return None
        file.seek(size - _TRAILER.size)
        magic, count, found, checksum = _TRAILER.unpack(file.read(_TRAILER.size))
        each = _KEY_BYTES + _SUM.itemsize
        if (magic, found) != (_MAGIC, record_bytes) or size != count * (record_bytes + each) + _TRAILER.size:
            return None
        file.seek(count * record_bytes)
        index = file.read(count * each)
    if zlib.crc32(index) != checksum:
        return None
    split = count * _KEY_BYTES
    return np.frombuffer(index[:split], _KEY), np.frombuffer(index[split:], _SUM)
