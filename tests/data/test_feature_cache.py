"""The feature cache on disk: any number of writers, what is written is read, damage is never read as features."""

import errno
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from mmchat.data import feature_cache
from mmchat.data.feature_cache import (
    NO_FEATURES,
    FeatureStore,
    FeatureWriter,
    ImageFeatures,
    image_key,
    key_array,
    remove_damaged_shards,
)
from mmchat.data.image_refs import ImageBytes
from mmchat.errors import UserError
from mmchat.vision import TowerSpec

SHAPE = (4, 6)
SPEC = TowerSpec(4, 2, *SHAPE)
RECORD = 4 * 6 * 4


def record(number):
    return np.random.default_rng(number).normal(size=SHAPE).astype("<f4")


def key(number):
    return image_key(str(number).encode())


def write(folder, numbers, shard_bytes=3 * RECORD):
    folder.mkdir(exist_ok=True)
    writer = FeatureWriter(FeatureStore(folder, SHAPE, "fp32"), shard_bytes)
    for number in numbers:
        writer.add(key(number), record(number))
    writer.flush()
    return writer.written


def held(folder):
    """Numbers below 30 that a store opened now has, each compared with what was written."""
    store = FeatureStore(folder, SHAPE, "fp32")
    there = [n for n in range(30) if store.has(key_array([key(n)]))[0]]
    assert len(store) == len(there)
    for number in there:
        assert np.array_equal(store.read(key(number)), record(number))
    return there


def test_what_is_written_is_read(tmp_path):
    assert held(tmp_path) == []
    assert write(tmp_path, range(8)) == 8 * RECORD
    assert len(list(tmp_path.glob("*.shard"))) == 3
    assert write(tmp_path, [3, 20]) == 2 * RECORD
    assert held(tmp_path) == [*range(8), 20]
    store = FeatureStore(tmp_path, SHAPE, "fp32")
    assert store.has(key_array([key(20), key(21), key(0)])).tolist() == [True, False, True]
    assert isinstance(store.read(key(5)), np.memmap)
    with pytest.raises(KeyError):
        store.read(key(21))


def test_bits_of_bf16_come_back(tmp_path):
    store = FeatureStore(tmp_path, SHAPE, "bf16")
    writer = FeatureWriter(store)
    bits = np.arange(24, dtype=np.uint16).reshape(SHAPE)
    writer.add(key(1), bits)
    writer.flush()
    assert np.array_equal(store.reopened().read(key(1)), bits)


def test_a_store_reads_no_records_of_another_size(tmp_path):
    write(tmp_path, [1])
    other = FeatureStore(tmp_path, (4, 7), "fp32")
    assert not len(other) and len(other.damaged) == 1


def test_many_processes_write_at_once(tmp_path):
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        jobs = [pool.submit(write, tmp_path, range(start, start + 12)) for start in (0, 6, 12)]
        assert [job.result() for job in jobs] == [12 * RECORD] * 3
    assert held(tmp_path) == list(range(24))


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def cut_to(size):
    return lambda path: os.truncate(path, size)


def flip(at):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return damage


INDEX_DAMAGE = {
    "last byte missing": cut,
    "empty": cut_to(0),
    "a whole record missing": lambda path: path.write_bytes(path.read_bytes()[RECORD:]),
    "a key": flip(3 * RECORD),
    "a checksum": flip(3 * RECORD + 3 * 16),
    "the end": flip(-1),
    "the count": flip(-20),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE.values(), ids=INDEX_DAMAGE)
def test_a_damaged_index_is_noticed_and_its_images_are_lacking(tmp_path, damage):
    write(tmp_path, range(3))
    (bad,) = tmp_path.glob("*.shard")
    write(tmp_path, range(3, 6))
    damage(bad)
    assert held(tmp_path) == [3, 4, 5]
    store = FeatureStore(tmp_path, SHAPE, "fp32")
    assert store.damaged == [bad]
    remove_damaged_shards(store)
    assert not bad.exists() and not store.reopened().damaged


def test_a_damaged_record_is_refused_and_its_shard_deleted(tmp_path):
    write(tmp_path, range(3))
    store = FeatureStore(tmp_path, SHAPE, "fp32")
    (bad,) = tmp_path.glob("*.shard")
    flip(RECORD + 5)(bad)
    assert np.array_equal(store.read(key(0)), record(0))
    with pytest.raises(UserError, match=f"{bad} are damaged.* deleted; start again with --resume") as error:
        store.read(key(1))
    assert error.value.kind == NO_FEATURES
    with pytest.raises(UserError, match="cannot be read") as error:
        store.read(key(0))
    assert error.value.kind == NO_FEATURES
    assert held(tmp_path) == []


def test_a_full_disk_leaves_what_was_written_before(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(tmp_path, range(3))
    monkeypatch.setattr(feature_cache, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, range(3, 6))
    assert held(tmp_path) == [0, 1, 2]


def test_files_of_killed_writers_are_deleted_after_an_hour(tmp_path):
    old, young = (tmp_path / f".{name}.shard.1.tmp" for name in "ab")
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    remove_damaged_shards(FeatureStore(tmp_path, SHAPE, "fp32"))
    assert [path for path in (old, young) if path.exists()] == [young]


def test_an_image_without_features_is_named_and_a_broken_one_has_its_usual_error(tmp_path, make_image):
    make_image().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    store = FeatureStore(tmp_path, SHAPE, "fp32")
    with pytest.raises(UserError, match=r"image a\.png has no features in .* the file has changed since") as error:
        ImageFeatures([store], SPEC).read(ImageBytes(data, "a.png"))
    assert error.value.kind == NO_FEATURES
    broken = ImageBytes(data[:-40], "a.png")
    with pytest.raises(UserError) as without:
        broken.open()
    with pytest.raises(UserError) as error:
        ImageFeatures([store], SPEC).read(broken)
    assert (str(error.value), error.value.kind) == (str(without.value), without.value.kind)
