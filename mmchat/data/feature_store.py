"""Features of images on the disk: computed once by a frozen tower, read in every epoch. No torch here.

A store is a folder of shards, all records of which have one shape and type. Whoever writes makes shards of its own, so
that any number of processes may write at once. A shard is

    records, one behind another | their keys, 16 bytes each | their CRC-32, 4 bytes each | the end (`_END`)

and is written aside and renamed. Its index is checked when a store is opened, a record when it is read.
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

DTYPES = {"fp32": np.dtype("<f4"), "bf16": np.dtype("<u2")}
"""What features may be stored as. NumPy has no bfloat16: its bits are kept as integers."""
SHARD_BYTES = 64 << 20
"""Bytes of records after which a shard is written; until then they are in memory, and a killed process loses them."""
NO_FEATURES = "no_features"
"""Kind of the error (`UserError.kind`) where the store is at fault and not the record."""

_KEY_BYTES = 16
_KEY = np.dtype(f"V{_KEY_BYTES}")
_SUM = np.dtype("<u4")
_END = struct.Struct("<8sQQI")
"""Magic, records, bytes of a record, CRC-32 of keys and sums."""
_MAGIC = b"mmfeat-1"
_ABANDONED = 3600
"""Seconds after which a shard that is still being written is taken for one whose writer was killed."""


def image_key(data: bytes) -> bytes:
    """What an image with these encoded bytes is called: their BLAKE2b of 16 bytes."""
    return hashlib.blake2b(data, digest_size=_KEY_BYTES).digest()


def view_keys(data: bytes, spec: TowerSpec, name: str) -> list[bytes]:
    """What a tower's views of that image are called: as the image, where it is the only one; else the hash of that
    and the view's number. Raises UserError where views hang on its size and it has none; it is called `name`."""
    key = image_key(data)
    if spec.preprocessing.tiling is None:
        return [key]
    return [image_key(key + number.to_bytes(4, "little")) for number in range(spec.views(image_size(data, name=name)))]


def key_array(keys: Sequence[bytes]) -> np.ndarray:
    """void[n]: keys that can be sorted and compared."""
    return np.frombuffer(b"".join(keys), _KEY)


class FeatureStore:
    """What the shards of a folder hold now. `damaged` are those that do not hold what they should, which are ignored.

    shape: of a record, [tokens, width]. stored_as: key of `DTYPES`.
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
        # Sorted, for searching; of an image that two processes have written, one record is enough.
        self._keys, first = np.unique(keys, return_index=True)
        self._sums, self._shard_of, self._row_of = sums[first], shards[first], rows[first]

    def __len__(self) -> int:
        return len(self._keys)

    def reopened(self) -> "FeatureStore":
        """With what has been written since."""
        return FeatureStore(self.folder, self.shape, self.stored_as)

    def has(self, keys: np.ndarray) -> np.ndarray:
        """bool[n]: which of the keys (`key_array`) are there."""
        if not len(self):
            return np.zeros(len(keys), bool)
        return self._keys[self._at(keys)] == keys

    def read(self, key: bytes) -> np.ndarray:
        """The features of one view, mapped from the file: dtype[tokens, width].

        Raises:
            KeyError: they are not there.
            UserError: the shard is gone, or its record is damaged; the shard is removed then.
        """
        wanted = key_array([key])
        if not self.has(wanted)[0]:
            raise KeyError(key)
        at = self._at(wanted)[0]
        path = self._shards[self._shard_of[at]]
        # Mapped anew for each record: a large store has more shards than a process may have open files.
        try:
            offset = int(self._row_of[at]) * self.record_bytes
            record = np.memmap(path, self.dtype, "r", offset, self.shape)
        except (OSError, ValueError) as error:
            raise UserError(
                f"features in {path} cannot be read: {error}; all ranks must see that folder, and nothing may remove "
                "files from it while a run goes on. Start again with --resume",
                NO_FEATURES,
            ) from None
        if zlib.crc32(record) != self._sums[at]:
            path.unlink(missing_ok=True)
            raise UserError(
                f"features in {path} are damaged, so it was removed; start again with --resume, which computes them "
                "anew",
                NO_FEATURES,
            )
        return record

    def _at(self, keys: np.ndarray) -> np.ndarray:
        return np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)


class FeatureWriter:
    """Adds records to a store's folder, a shard at a time; `flush` writes the last one. `written`: bytes of records."""

    def __init__(self, store: FeatureStore, shard_bytes: int = SHARD_BYTES) -> None:
        self.written = 0
        self._store, self._shard_bytes = store, shard_bytes
        self._keys: list[bytes] = []
        self._records: list[bytes] = []

    def add(self, key: bytes, features: np.ndarray) -> None:
        """Raises OSError where a shard cannot be written; nothing of it is left then."""
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
        end = _END.pack(_MAGIC, len(records), self._store.record_bytes, zlib.crc32(keys + sums))
        write_bytes(self._store.folder / f"{uuid.uuid4().hex}.shard", b"".join([*records, keys, sums, end]))
        self.written += len(records) * self._store.record_bytes
        self._keys, self._records = [], []


class ImageFeatures:
    """Features of a record's images instead of their pixels, from one store for each tower.

    spec: any tower's, since all have the same views of an image. A record of a store is a view.
    """

    def __init__(self, stores: list[FeatureStore], spec: TowerSpec) -> None:
        self.stores, self.spec = stores, spec

    def read(self, image: ImageRef) -> list[np.ndarray]:
        """dtype[views, tokens, width] for each tower.

        Raises:
            UserError: the image cannot be read or decoded, or has no features here.
        """
        data = image.read()
        keys = view_keys(data, self.spec, image.name)
        try:
            return [np.stack([store.read(key) for key in keys]) for store in self.stores]
        except KeyError:
            load_image(data, name=image.name)  # whose features were never computed, because this raises
            raise UserError(
                f"image {image.name} has no features in {self.stores[0].folder.parent}: it is another image than "
                "when the run started. Start again with --resume, which computes them",
                NO_FEATURES,
            ) from None


def remove_damaged_shards(store: FeatureStore) -> None:
    """Remove damaged shards, and what writers left that were killed."""
    for path in store.damaged:
        path.unlink(missing_ok=True)
    for path in store.folder.glob(".*.shard.*.tmp"):
        if time.time() - path.stat().st_mtime > _ABANDONED:
            path.unlink(missing_ok=True)


def _read_index(path: Path, record_bytes: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys and checksums of a shard's records; None where it is cut off or damaged, or holds other records."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < _END.size:
            return None
        file.seek(size - _END.size)
        magic, count, found, checksum = _END.unpack(file.read(_END.size))
        each = _KEY_BYTES + _SUM.itemsize
        if (magic, found) != (_MAGIC, record_bytes) or size != count * (record_bytes + each) + _END.size:
            return None
        file.seek(count * record_bytes)
        index = file.read(count * each)
    if zlib.crc32(index) != checksum:
        return None
    split = count * _KEY_BYTES
    return np.frombuffer(index[:split], _KEY), np.frombuffer(index[split:], _SUM)
