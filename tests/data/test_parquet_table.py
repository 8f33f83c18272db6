"""Parquet is copied once as Arrow, or read in place by row groups; neither fills a disk or the memory."""

import errno
import os
import pickle
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mmchat.data import parquet_table
from mmchat.data.parquet_table import ParquetTable
from mmchat.data.records import Rejected
from mmchat.data.sources import open_source
from mmchat.errors import UserError


def write(path, rows, **options):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


@pytest.fixture
def rows():
    return [
        {"n": n, "image": {"bytes": bytes([n % 251]) * 9, "path": None}, "tags": ["a"] * (n % 3)} for n in range(500)
    ]


@pytest.fixture(params=["copied", "in place"])
def way(request, monkeypatch):
    if request.param == "in place":
        monkeypatch.setattr(parquet_table, "LARGEST_COPIED", 0)
    return request.param


def test_rows_in_any_order_and_process(tmp_path, rows, way, cache):
    path = write(tmp_path / "a.parquet", rows, row_group_size=150)
    table = ParquetTable(path)
    assert [table.row(n)[1] for n in range(len(table))] == rows
    again = pickle.loads(pickle.dumps(table))
    for n in [*np.random.default_rng(0).permutation(500).tolist(), 499, 0, 149, 150, 0]:
        assert again.row(n) == (f"{path}:row {n + 1}", rows[n])
    assert (cache / "parquet").exists() == (way == "copied")
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
    else:  # a data worker
        os._exit(0 if table.row(321)[1] == rows[321] else 1)


def test_a_file_without_rows_and_one_with_categories(tmp_path, way):
    assert len(ParquetTable(write(tmp_path / "a.parquet", [], row_group_size=5))) == 0
    names = pyarrow.array(["a", "b", "a", "c"]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"name": names}), tmp_path / "b.parquet", row_group_size=2)
    table = ParquetTable(str(tmp_path / "b.parquet"))
    assert [table.row(n)[1]["name"] for n in range(4)] == ["a", "b", "a", "c"]


def test_a_small_file_that_holds_a_lot_is_read_in_place(tmp_path, cache):
    """33 kB of parquet for 300 MB of one repeated text."""
    text = pyarrow.DictionaryArray.from_arrays(np.zeros(300_000, np.int32), ["x" * 1_000])
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"caption": text}), path, store_schema=False)
    assert path.stat().st_size < 50_000
    tracemalloc.start()
    table = ParquetTable(str(path))
    assert table.row(299_999)[1] == {"caption": "x" * 1_000} and len(table) == 300_000
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert not list((cache / "parquet").iterdir())


def test_a_text_that_claims_to_be_huge_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", [{"caption": "x" * 100_000_000}], compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match=r"row group 0 claim to be .* of column caption"):
        ParquetTable(path)


def test_a_group_with_fewer_rows_than_its_metadata_says(tmp_path, cache):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"caption": [f"c{number}" for number in range(3)]}), path)
    rows = parquet_table._ParquetRows(str(path))
    rows._ends = np.array([9])
    with pytest.raises(UserError, match="row group 0 holds fewer rows than the metadata say"):
        rows.row(5)
    assert rows.row(1) == {"caption": "c1"}  # after the error, from the beginning


def test_a_full_disk_names_the_key_that_moves_the_cache(tmp_path, rows, cache, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write(tmp_path / "a.parquet", rows)
    monkeypatch.setattr(parquet_table, "atomic_file", full)
    with pytest.raises(UserError, match=r"parquet is on a full disk; set MMCHAT_CACHE to a folder"):
        open_source(path)


def test_damaged_files_are_named(tmp_path, rows, way):
    path = tmp_path / "a.parquet"
    for data in (b"", b"PAR1", b"no parquet" * 50):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet"):
            ParquetTable(str(path))
    write(tmp_path / "b.parquet", rows, row_group_size=100, compression="none")
    whole = bytearray((tmp_path / "b.parquet").read_bytes())
    whole[200:1200] = b"\xff" * 1000
    path.write_bytes(whole)
    table = ParquetTable(str(path))
    found = [table.row(n)[1] for n in range(500)]
    assert isinstance(found[0], Rejected) and found[450] == rows[450]
