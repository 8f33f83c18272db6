"""Data sets in any storage, opened as numbered records: `open_source(path)[i]`. Only offsets are held in memory.

.json .jsonl   a JSON array, or one object per line          .tar       WebDataset shards (shards.py)
.csv .tsv      a header line; an image and a caption column  .parquet   images and text in columns
a folder       all such files in it, sorted by name; or what `datasets.save_to_disk` wrote; or one folder of images per
               class (class_folders.py); or numbered folders of images with their texts (loose_samples.py)
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from mmchat.data import storage
from mmchat.data.arrow_tables import ArrowTable
from mmchat.data.class_folders import ClassFolders, holds_class_folders
from mmchat.data.delimited_table import CsvTable
from mmchat.data.loose_samples import LooseSamples, holds_loose_samples
from mmchat.data.parquet_table import ParquetTable
from mmchat.data.records import Record, Rejected, read_record
from mmchat.data.shards import TarTable
from mmchat.data.text_files import JsonTable
from mmchat.errors import UserError

TABLES: dict[str, "Callable[[str], Table]"] = {
    ".json": JsonTable,
    ".jsonl": JsonTable,
    ".csv": CsvTable,
    ".tsv": CsvTable,
    ".tar": TarTable,
    ".parquet": ParquetTable,
}


class Table(Protocol):
    """Stored objects by number, with random access from any process. `files` are hashed to identify the data."""

    files: list[str]

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[str, Any]:
        """`where` (file:record), and the decoded object or a `Rejected` if it cannot be decoded."""


class Source:
    """The records of one data set, decoded on access."""

    def __init__(self, name: str, table: Table, image_root: str, allow_http: bool = False) -> None:
        self.name, self.table, self.image_root, self.allow_http = name, table, image_root, allow_http

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Record | Rejected:
        where, item = self.table.row(index)
        if isinstance(item, Rejected):
            return item
        return read_record(item, where, self.image_root, self.allow_http)

    def __iter__(self) -> Iterator[Record | Rejected]:
        return (self[index] for index in range(len(self)))

    def digest(self) -> str:
        """A hash of the stored contents, independent of their path."""
        return storage.content_digest(self.table.files)


class _Chain:
    """Several tables, concatenated."""

    def __init__(self, tables: list[Table]) -> None:
        self.tables = tables
        self.files = [file for table in tables for file in table.files]
        self.ends = np.cumsum([len(table) for table in tables])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def row(self, index: int) -> tuple[str, Any]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.tables[number].row(index - (int(self.ends[number - 1]) if number else 0))


def open_source(path: str | Path, image_root: str | Path | None = None, allow_http: bool = False) -> Source:
    """Open a file, a folder, a pattern with `*`, or an fsspec URL.

    Args:
        image_root: folder that image paths are relative to; None is the folder of the file, or the folder itself.
        allow_http: fetch sources and images over http(s).

    Raises:
        UserError: nothing is there, of no known kind, of several kinds, or it cannot be read at all. (A record
            that cannot be read is a `Rejected` when it is asked for.)
    """
    path = str(path)
    if path.startswith(("http://", "https://")) and not allow_http:
        raise UserError(f"{path} is fetched over http; set allow_http to allow it, or download it")
    files, is_folder = find_files(path)
    root = str(image_root) if image_root else path if is_folder else _parent(path)
    if is_folder and any(PurePosixPath(file).name in ("dataset_info.json", "dataset_dict.json") for file in files):
        return Source(path, ArrowTable.from_disk(path), root, allow_http)
    if is_folder and holds_loose_samples(path) and _are_companions(files):
        return Source(path, LooseSamples(path), root, allow_http)
    known = _without_companions([file for file in files if _suffix(file) in TABLES])
    kinds = sorted({_suffix(file) for file in known})
    if not known and holds_class_folders(path):
        return Source(path, ClassFolders(path), root, allow_http)
    if not known:
        raise UserError(
            f"{path} holds no data file; expected one of {', '.join(TABLES)}, or one folder of images per class"
        )
    families = {TABLES[kind] for kind in kinds}
    if len(families) > 1:
        raise UserError(
            f"{path} holds files of several kinds ({', '.join(kinds)}); name one, or give each its own source"
        )
    tables = [families.copy().pop()(file) for file in known]
    return Source(path, tables[0] if len(tables) == 1 else _Chain(tables), root, allow_http)


def find_files(path: str) -> tuple[list[str], bool]:
    """The files that a path or pattern names, sorted, and whether it is a folder that holds them.

    Raises:
        UserError: there are none.
    """
    if any(sign in PurePosixPath(path).name for sign in "*?[") and not Path(path).exists():
        return storage.expand(path), False
    files = storage.list_folder(path)
    if files is not None:
        return files, True
    if not storage.exists(path):
        raise UserError(f"data file {path} does not exist")
    return [path], False


def _without_companions(files: list[str]) -> list[str]:
    """The files without what img2dataset writes beside a shard: its statistics, and beside a tar its table."""
    tars = {file.rpartition(".")[0] for file in files if _suffix(file) == ".tar"}
    tables = {file.rpartition(".")[0] for file in files if _suffix(file) == ".parquet"} - tars
    companions = {f"{stem}_stats.json" for stem in tars | tables} | {f"{stem}.parquet" for stem in tars}
    return [file for file in files if file not in companions]


def _are_companions(files: list[str]) -> bool:
    """Whether all data files are what img2dataset writes beside folders of loose files: statistics and tables."""
    names = [file for file in files if _suffix(file) in TABLES]
    stems = {file.removesuffix("_stats.json") for file in names if file.endswith("_stats.json")}
    return all(file.endswith("_stats.json") or file.removesuffix(".parquet") in stems for file in names)


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _parent(path: str) -> str:
    return path.rpartition("/")[0] if storage.is_remote(path) else str(Path(path).parent)
