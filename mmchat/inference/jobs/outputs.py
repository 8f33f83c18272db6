"""What is made of a journal: a parquet file, or a text file for each image (a sidecar)."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.files import CANNOT_WRITE, atomic_file, write_bytes
from mmchat.inference.jobs.digests import DigestSet
from mmchat.inference.jobs.items import Item, Line, refuse

ROWS = 8192
"""Rows of a row group."""


def journal_of(out: Path, suffixes: tuple[str, ...]) -> Path:
    """The journal of a job whose `--out` is `out`: the file itself, or `OUT.jsonl` for a file that is made of it.

    Raises:
        UserError: The suffix is none of `suffixes`, or `out` exists and no job wrote it.
    """
    if out.suffix == ".jsonl":
        return out
    if out.suffix not in suffixes:
        raise UserError(f"--out {out} must end in one of .jsonl, {', '.join(suffixes)}, which is its format")
    journal = out.with_name(out.name + ".jsonl")
    if out.exists() and not journal.exists():
        raise UserError(f"{out} was not written by this command, so it is not overwritten; choose another --out")
    return journal


def write_parquet(journal: Path, out: Path, columns: tuple[str, ...], numbers: tuple[str, ...] = ()) -> None:
    """Write the lines of a journal as a parquet file, some thousand at a time.

    Args:
        journal: The JSON lines.
        out: The file, which appears when it is complete.
        columns: Fields of the lines, in order; `error` is the last column. What a line lacks is null.
        numbers: Those of them that are integers. All others are texts.
    """
    require("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in (*columns, "error")])
    with journal.open("rb") as lines, atomic_file(out) as file, pq.ParquetWriter(file, schema) as writer:
        while rows := [json.loads(line) for line in islice(lines, ROWS)]:
            values = [[_cell(row.get(name), name in numbers) for row in rows] for name in schema.names]
            writer.write_table(pa.table(values, schema=schema))


def _cell(value: Any, is_number: bool) -> Any:
    if value is None or is_number:
        return value
    # A lone surrogate, which stands for a byte of a file name, becomes `\udc..` as in the journal.
    return str(value).encode("utf-8", "backslashreplace").decode()


class Sidecars:
    """One text file per image: next to it, or in a folder, under the path at which the image was found.

    A file that this job did not write is never overwritten, and in a folder nothing is written outside of it. The line
    of an image names its sidecar and is written first, so what a killed job left out is made up for from there.

    Args:
        folder: The folder; None puts every text next to its image.
        field: The field of a line that is written.
    """

    def __init__(self, folder: Path | None, field: str) -> None:
        self._folder, self._field = folder, field
        self._claimed = DigestSet()

    def claim(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each with the place of its sidecar. One whose place is taken has an error instead of its image.

        Raises:
            UserError: A text belongs next to its image, which is not a file.
        """
        for item in items:
            path = self._path_of(item)
            try:
                if not self._is_inside(path):
                    raise UserError(f"{path} is outside of {self._folder}; give its image or record another name")
                if not self._claimed.add(str(path)) or path.exists():
                    raise UserError(f"{path} exists and does not belong to this image; move it or use --sidecar-dir")
            except UserError as error:
                yield replace(item, open=partial(refuse, str(error)))
                continue
            yield replace(item, kept={**item.kept, "sidecar": str(path)})

    def write(self, line: Line) -> None:
        """Write the sidecar that a line names, if it has an answer and the file is missing.

        Raises:
            UserError: The folder cannot be written.
        """
        path = Path(line.get("sidecar") or "")
        if self._field not in line or not path.name or path.exists() or not self._is_ours(path, line):
            return
        try:
            write_bytes(path, (line[self._field] + "\n").encode("utf-8", "backslashreplace"))
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            raise UserError(f"{path} cannot be written: {error.strerror}; choose another --sidecar-dir") from None

    def remove(self, line: Line) -> None:
        """Delete the sidecar that a line names, if this job writes there."""
        path = Path(line.get("sidecar") or "")
        if path.name and self._is_ours(path, line):
            path.unlink(missing_ok=True)

    def _path_of(self, item: Item) -> Path:
        if self._folder is not None:
            return self._folder / f"{item.stem.lstrip('/')}.txt"
        if item.file is None:
            raise UserError(
                f"{item.key['path']} is not a file of its own, so no text can be next to it; use --sidecar-dir DIR"
            )
        return Path(item.file).with_suffix(".txt")

    def _is_ours(self, path: Path, line: Line) -> bool:
        """Whether a line that was read back names a place where this job writes."""
        if self._folder is None:
            return path == Path(line["path"]).with_suffix(".txt")
        return self._is_inside(path)

    def _is_inside(self, path: Path) -> bool:
        """Whether a path is in the folder, with links resolved. True if there is none."""
        return self._folder is None or path.resolve().is_relative_to(self._folder.resolve())
