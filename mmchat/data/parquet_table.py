"""Parquet files as a table of rows.

A row cannot be read alone: its row group is decompressed up to it. So a file is copied once into the cache as Arrow,
which is memory-mapped. One that is large, or whose copy would be much larger than itself, is read in place by its row
groups: in order as fast as any, in random order slower the larger the groups are.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmchat.data import storage
from mmchat.data.records import Rejected
from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.files import atomic_file

LARGEST_COPIED = 4 << 30
"""Bytes of a parquet file. A larger one is read in place."""
LARGEST_RATIO = 20
"""A copy is given up where it has more bytes than this times the file and than `SMALL_COPY`. A column of one repeated
text needs 4 kB for 1 GB; texts of people compress by a factor of ten at most, images not at all."""
SMALL_COPY = 64 << 20
DECOMPRESSION_RATIO = 500
"""A column of a row group that claims to be more than this times what is stored of it, and than `SMALL_COPY`, is
refused."""
BATCH = 64
"""Rows that are decoded together."""


class ParquetTable:
    """The rows of one file."""

    def __init__(self, path: str) -> None:
        require("pyarrow")
        self.files = [path]
        local = storage.local_copy(path)
        with _errors_named(path):
            copy = _arrow_copy(local)
            self._rows: _ArrowRows | _ParquetRows = _ParquetRows(local) if copy is None else _ArrowRows(copy)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[str, Any]:
        where = f"{self.files[0]}:row {index + 1}"
        try:
            with _errors_named(self.files[0]):
                return where, self._rows.row(index)
        except UserError as error:
            return where, Rejected(where, "", str(error))


class _ArrowRows:
    """An Arrow file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: Any = None
        reader = self._open()
        sizes = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, index: int) -> Any:
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._open().get_batch(number)
        return batch.slice(index - int(self._ends[number]) + batch.num_rows, 1).to_pylist()[0]

    def _open(self) -> Any:
        if self._reader is None:
            import pyarrow

            self._reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(self._path)))
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_reader": None}


class _ParquetRows:
    """A parquet file, in place. Keeps its place in a row group, so that reading in order is one pass."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file, self._process = None, 0
        self._group, self._start = -1, 0
        self._batch: Any = None
        self._batches: Any = None
        metadata = self._open().metadata
        _check_ratio(metadata, path)
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, index: int) -> Any:
        file = self._open()
        group = int(np.searchsorted(self._ends, index, side="right"))
        if group != self._group or index < self._start:
            begin = int(self._ends[group - 1]) if group else 0
            batches = file.iter_batches(BATCH, row_groups=[group], use_threads=False)
            self._group, self._batches, self._start = group, batches, begin
            self._batch = self._next_batch()
        while index >= self._start + self._batch.num_rows:
            self._start += self._batch.num_rows
            self._batch = self._next_batch()
        return self._batch.slice(index - self._start, 1).to_pylist()[0]

    def _next_batch(self) -> Any:
        """The next rows of the group. After an error the group is read from its beginning, never from another place.

        Raises:
            UserError: There are none, although the metadata counts more rows.
        """
        group, self._group = self._group, -1
        if (batch := next(self._batches, None)) is None:
            raise UserError(f"row group {group} holds fewer rows than the metadata say; copy the file again")
        self._group = group
        return batch

    def _open(self) -> Any:
        if self._process != os.getpid():  # a forked data worker has no threads of pyarrow's
            import pyarrow.parquet

            self._file, self._process = pyarrow.parquet.ParquetFile(self._path, memory_map=True), os.getpid()
            self._group = -1
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None, "_process": 0, "_batch": None, "_batches": None}


@contextlib.contextmanager
def _errors_named(path: str) -> Iterator[None]:
    """Name the file in errors of pyarrow's, which are ValueError and OSError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as parquet: {type(error).__name__}: {str(error)[:300]}") from None


def _arrow_copy(path: str) -> Path | None:
    """The cached copy of a file, written if it is missing; None if the file is better read in place.

    Raises:
        UserError: The disk of the cache is full.
    """
    size = Path(path).stat().st_size
    if size > LARGEST_COPIED:
        return None
    copy = storage.cache_dir() / "parquet" / f"{storage.content_digest([path])}.arrow"
    if copy.exists():
        return copy
    try:
        return copy if _write_copy(path, copy, max(SMALL_COPY, LARGEST_RATIO * size)) else None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return None  # a cache that cannot be written, or a damaged row group, which is found again in place
        raise UserError(
            f"{path} is copied into the cache once, and {copy.parent} is on a full disk; set MMCHAT_CACHE to a folder "
            "on another one"
        ) from None


def _write_copy(path: str, copy: Path, most: int) -> bool:
    """Write the rows as Arrow. Returns False, and leaves nothing, if they have more bytes than `most`."""
    import pyarrow
    import pyarrow.parquet

    written = 0
    file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    _check_ratio(file.metadata, path)
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")  # ranks may copy the same file at once
        with atomic_file(copy, temporary) as sink, pyarrow.ipc.new_file(sink, file.schema_arrow) as writer:
            for batch in file.iter_batches(BATCH, use_threads=False):
                written += batch.nbytes
                if written > most:
                    raise _TooLarge
                writer.write_batch(batch)
    except (_TooLarge, pyarrow.ArrowInvalid):  # or one that Arrow files cannot hold, or a damaged row group
        return False
    return True


def _check_ratio(metadata: Any, path: str) -> None:
    """Raises UserError if a part of a file claims to be much larger than what is stored of it."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            if chunk.total_uncompressed_size > max(SMALL_COPY, DECOMPRESSION_RATIO * chunk.total_compressed_size):
                raise UserError(
                    f"{path}: {chunk.total_compressed_size:,} bytes of row group {group} claim to be "
                    f"{chunk.total_uncompressed_size:,} bytes of column {chunk.path_in_schema}, which is not "
                    "believed; the file is damaged or hostile"
                )


class _TooLarge(Exception):  # noqa: N818 - ends the writing of a copy, and never leaves this module
    pass
