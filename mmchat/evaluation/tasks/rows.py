"""The rows of published files: tables as training reads them, JSON objects with a list inside, and MME's folders."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmchat.data.records import Rejected
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.images import IMAGE_SUFFIXES

LARGEST_OBJECT = 1 << 30
"""Bytes of a JSON file that is one object and read as a whole. VQAv2's annotations of the training set have 400 MB."""


class Rows(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Opened:
    """A file or folder of the data.

    Attributes:
        path: As the user named it.
        root: Folder that its image paths are relative to.
        table: Its rows, unless it is one JSON object.
        lists: The lists of a JSON object by key; "*" for its values.
        scalars: Its other values.
    """

    path: str
    root: str
    table: Rows | None = None
    lists: Mapping[str, Sequence[Any]] | None = None
    scalars: Mapping[str, Any] | None = None

    def rows(self, key: str | None) -> Rows | None:
        """The list of this key, or the table if it is None; None if there is no such list."""
        if key is None:
            return self.table
        found = (self.lists or {}).get(key)
        return None if found is None else _Listed(found, {**(self.scalars or {}), "_file": Path(self.path).stem})


def open_rows(path: Path, image_root: Path | None) -> Opened:
    """Open a file or folder.

    Raises:
        UserError: It is not there, or holds nothing that can be read.
    """
    if path.is_dir() and (found := _mme_rows(path)):
        return Opened(str(path), str(image_root or path), table=_Listed(found, {}))
    root = str(image_root or (path if path.is_dir() else path.parent))
    value = _json_object(path)
    if value is not None:
        lists = {key: entry for key, entry in value.items() if isinstance(entry, list)}
        if value and all(isinstance(entry, dict) for entry in value.values()):
            lists["*"] = [{"_key": key, **entry} for key, entry in value.items()]
        scalars = {key: entry for key, entry in value.items() if isinstance(entry, str | int)}
        return Opened(str(path), root, lists=lists, scalars=scalars)
    return Opened(str(path), root, table=_Table(str(path), root))


class _Table:
    """Rows of `open_source`, each refused if it cannot be decoded."""

    def __init__(self, path: str, root: str) -> None:
        self._table = open_source(path, root).table
        self._file = Path(path).stem

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        where, row = self._table.row(index)
        if isinstance(row, Rejected):
            raise UserError(f"{row.where}: {row.reason}")
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: expected an object, found {type(row).__name__}")
        return {**row, "_file": self._file, "_row": index}


@dataclass(frozen=True)
class _Listed:
    """A list in memory, with values that all its rows share."""

    values: Sequence[Any]
    shared: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self.values[index]
        if not isinstance(row, Mapping):
            raise UserError(f"record {index} must be an object, found {type(row).__name__}")
        return {**self.shared, **row, "_row": index}


def _json_object(path: Path) -> dict[str, Any] | None:
    """The value of a .json file that is one object; None for an array, for lines, and for other files."""
    if path.suffix != ".json" or not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":
            return None
    if path.stat().st_size > LARGEST_OBJECT:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes and is one JSON object, of which 1 GB is read at most"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object per line
            return None
        raise UserError(f"{path} is not valid JSON: {error}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    return value if isinstance(value, dict) else None


def _mme_rows(folder: Path) -> list[dict[str, Any]]:
    """MME as published: a folder per category, with images and a .txt for each of lines "question TAB answer".

    Some categories keep both in one folder, others in images/ and questions_answers_YN/.
    """
    rows = []
    for texts in sorted(folder.glob("*/*.txt")) + sorted(folder.glob("*/questions_answers_YN/*.txt")):
        category = texts.relative_to(folder).parts[0]
        images = texts.parent.parent / "images" if texts.parent.name == "questions_answers_YN" else texts.parent
        image = next(
            (images / f"{texts.stem}{end}" for end in sorted(IMAGE_SUFFIXES) if _is_there(images, texts, end)), None
        )
        for line in texts.read_text(encoding="utf-8").splitlines():
            question, tab, answer = line.rpartition("\t")
            if not tab and line.strip():
                raise UserError(f"{texts}: expected a question, a tab and an answer, found {line!r:.80}")
            if tab:
                where = None if image is None else str(image.relative_to(folder))
                pair = f"{category}/{texts.stem}"
                rows.append(
                    {"category": category, "image": where, "question": question, "answer": answer, "pair": pair}
                )
    return rows


def _is_there(images: Path, texts: Path, suffix: str) -> bool:
    return (images / f"{texts.stem}{suffix}").is_file()
