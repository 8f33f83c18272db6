"""Where items come from: files, folders, patterns, tables and lists, each a stream that holds no item.

photo.png            an image            shards/*.tar          what matches a pattern
photos/              its images, deep    captions.parquet      rows: .tar .parquet .json .jsonl .csv .tsv
list.txt             a path, an address or a JSON record per line; `-` reads such lines from standard input
https://...          an address, if addresses are allowed
"""

import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path, PurePath
from threading import Lock
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mmchat.data import storage
from mmchat.data.image_refs import ImageUrl, make_image_ref
from mmchat.data.record_layouts import image_entry, read_members
from mmchat.data.records import Rejected
from mmchat.data.sources import TABLES, Table, open_source
from mmchat.errors import UserError
from mmchat.files import refuse_special
from mmchat.images import IMAGE_SUFFIXES, is_junk, load_image
from mmchat.inference.jobs.items import Item, refuse

BLOCK = 4096
"""Names of a folder that exist as Python objects at a time."""
FolderId = tuple[int, int]
"""Device and inode."""
STDIN = "-"
_ADDRESS = ("http://", "https://")


class Source(Protocol):
    """A stream of items, which may be read several times unless `count` says None."""

    def __iter__(self) -> Iterator[Item]: ...

    def count(self) -> int | None:
        """Number of items; None if it becomes known only by reading what can be read once."""


@dataclass(frozen=True)
class Options:
    """How sources are read."""

    suffixes: Set[str] = IMAGE_SUFFIXES
    """Lower-case suffixes of the files to take from folders."""
    fetch: Callable[[str], bytes] | None = None
    """Fetches an image from an address; None: addresses are refused."""
    image_root: str | None = None
    """Folder that image paths of tables are relative to; None is the folder of the table."""


class Sources:
    """Several sources, concatenated.

    Args:
        paths: What the user named.
        options: How to read it.

    Raises:
        UserError: One does not exist, or none holds an item.
    """

    def __init__(self, paths: Iterable[str | Path], options: Options) -> None:
        self._sources = [_open(str(path), options) for path in paths]
        if not any(_holds_items(source) for source in self._sources):
            looked_for = ", ".join(sorted(options.suffixes))
            raise UserError(f"no image found in {', '.join(map(str, paths))} (looked for {looked_for})")

    @property
    def are_files(self) -> bool:
        """Whether every item is a file of its own."""
        return all(isinstance(source, _Folder | _One) for source in self._sources)

    def __iter__(self) -> Iterator[Item]:
        for source in self._sources:
            yield from source

    def count(self) -> int | None:
        total = 0
        for source in self._sources:
            count = source.count()
            if count is None:
                return None
            total += count
        return total


def _holds_items(source: Source) -> bool:
    """Whether a source has an item. Standard input is not read."""
    return (isinstance(source, _Lines) and source.path == STDIN) or next(iter(source), None) is not None


def _open(path: str, options: Options) -> Source:
    if path == STDIN:
        return _Lines(path, options)
    if path.startswith(_ADDRESS):
        return _One(_address(path, options))
    if storage.is_remote(path):
        return _Records(path, options)
    path = str(Path(path))  # a/ and ./a are a
    if Path(path).is_dir():
        return _Folder(path, options.suffixes)
    if Path(path).exists():
        refuse_special(path)
        return _file(path, options)
    if glob.has_magic(path):
        return _Pattern(path, options)
    raise UserError(f"{path} does not exist; expected an image file or a folder of images")


def _file(path: str, options: Options) -> Source:
    suffix = PurePath(path).suffix.lower()
    if suffix in TABLES:
        return _Records(path, options)
    return _Lines(path, options) if suffix == ".txt" else _One(_file_item(path, PurePath(path).name))


def _file_item(path: str, below: str) -> Item:
    """A file, found at `below` under what the user named."""
    return Item({"path": path}, partial(load_image, path), file=path, stem=os.path.splitext(below)[0])  # noqa: PTH122


def _address(url: str, options: Options) -> Item:
    if options.fetch is None:
        raise UserError(f"{url[:200]} is an address; --allow-http fetches images from addresses, or download it")
    return Item({"path": url}, partial(_fetched, options.fetch, url), stem=url.partition("://")[2].partition("?")[0])


def _fetched(fetch: Callable[[str], bytes], url: str) -> Image.Image:
    return load_image(fetch(url), name=url[:200])


@dataclass(frozen=True)
class _One:
    item: Item

    def __iter__(self) -> Iterator[Item]:
        yield self.item

    def count(self) -> int:
        return 1


@dataclass(frozen=True)
class _Folder:
    """The files of a folder and those below it, in the order of their names."""

    root: str
    suffixes: Set[str]

    def __iter__(self) -> Iterator[Item]:
        for below in self._files(Path(), frozenset()):
            yield _file_item(str(Path(self.root, below)), str(below))

    def count(self) -> int:
        return _count_files(self.root, self.suffixes, frozenset())

    def _files(self, folder: Path, above: frozenset[FolderId]) -> Iterator[Path]:
        identity = _identity(Path(self.root, folder))
        if identity in above:  # a link to a folder that it is in
            return
        for name, is_folder in _sorted_names(Path(self.root, folder), self.suffixes):
            if is_folder:
                yield from self._files(folder / name, above | {identity})
            else:
                yield folder / name


def _identity(folder: str | Path) -> FolderId:
    stat = os.stat(folder)  # noqa: PTH116 - a path of bytes or of text
    return stat.st_dev, stat.st_ino


def _sorted_names(folder: Path, suffixes: Set[str]) -> Iterator[tuple[str, bool]]:
    """Names in a folder, sorted, and whether each is a folder. They are kept as arrays of bytes, which take a fraction
    of what Python's strings take."""
    names, kinds = [np.empty(0, "S1")], [np.empty(0, bool)]
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            wanted = ((entry.name, entry.is_dir()) for entry in entries if _wanted(entry, suffixes))
            while block := list(islice(wanted, BLOCK)):
                names.append(np.array([name for name, _ in block]))
                kinds.append(np.array([kind for _, kind in block]))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    all_names, all_kinds = np.concatenate(names), np.concatenate(kinds)
    del names, kinds
    order = np.argsort(all_names, kind="stable")
    for start in range(0, len(order), BLOCK):
        chosen = order[start : start + BLOCK]
        yield from zip(map(os.fsdecode, all_names[chosen].tolist()), all_kinds[chosen].tolist(), strict=True)


def _count_files(folder: str, suffixes: Set[str], above: frozenset[FolderId]) -> int:
    identity = _identity(folder)
    if identity in above:
        return 0
    within = above | {identity}
    with os.scandir(os.fsencode(folder)) as entries:
        wanted = ((entry.path, entry.is_dir()) for entry in entries if _wanted(entry, suffixes))
        return sum(_count_files(os.fsdecode(path), suffixes, within) if is_folder else 1 for path, is_folder in wanted)


def _wanted(entry: "os.DirEntry[bytes]", suffixes: Set[str]) -> bool:
    """Whether an entry is a folder or a file to take. Links are followed, junk is left out."""
    if is_junk(os.fsdecode(entry.name)):
        return False
    if entry.is_dir():
        return True
    return os.path.splitext(os.fsdecode(entry.name))[1].lower() in suffixes and entry.is_file()  # noqa: PTH122


@dataclass(frozen=True)
class _Pattern:
    """What matches a pattern with `*`, `?`, `[...]` or `**`."""

    pattern: str
    options: Options

    def __iter__(self) -> Iterator[Item]:
        for source in self._sources():
            yield from source

    def count(self) -> int | None:
        return sum(source.count() or 0 for source in self._sources())

    def _sources(self) -> Iterator[Source]:
        found = False
        for path in glob.iglob(self.pattern, recursive=True):  # noqa: PTH207 - a pattern may be absolute
            found = True
            if Path(path).is_dir():
                yield _Folder(path, self.options.suffixes)
            else:
                yield _file(path, self.options)
        if not found:
            raise UserError(f"no file matches {self.pattern}")


class _Records:
    """The rows of a table, which keeps offsets only."""

    def __init__(self, path: str, options: Options) -> None:
        self._path, self._options = path, options
        self._lock = Lock()

    def __iter__(self) -> Iterator[Item]:
        table = self._table
        for index in range(len(table)):
            where, row = table.row(index)
            stem = PurePath(self._path).stem + where.removeprefix(self._path).replace(":", "/", 1)
            yield _record_item(where, row, stem, self._root, self._options)

    def count(self) -> int:
        return len(self._table)

    @property
    def _table(self) -> Table:
        with self._lock:
            return self._source.table

    @cached_property
    def _source(self) -> Any:
        return open_source(self._path, self._options.image_root)

    @property
    def _root(self) -> str:
        return self._source.image_root


def _record_item(where: str, row: Any, stem: str, root: str, options: Options) -> Item:
    """A row as an item. What is wrong with it becomes the error of its line."""
    item = Item({"path": where}, partial(refuse, ""), stem=stem)
    if isinstance(row, Rejected):
        return replace(item, open=partial(refuse, f"{where}: {row.reason}"))
    try:
        if not isinstance(row, Mapping):
            raise UserError(f"expected an object with an image, found {type(row).__name__}")
        image = make_image_ref(image_entry(row), root, options.fetch is not None)
    except UserError as error:
        return replace(item, open=partial(refuse, f"{where}: {error}"))
    opening = image.open
    if isinstance(image, ImageUrl):
        assert options.fetch is not None
        opening = partial(_fetched, options.fetch, image.url)
    return replace(item, open=opening, fields=_plain_fields(read_members(row)))


def _plain_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a prompt can name: texts and numbers."""
    return {name: value for name, value in row.items() if isinstance(value, str | int | float)}


@dataclass(frozen=True)
class _Lines:
    """A path, an address or a JSON record per line of a file or of standard input."""

    path: str
    options: Options

    def __iter__(self) -> Iterator[Item]:
        if self.path == STDIN:
            yield from self._items(sys.stdin.buffer)
            return
        with storage.open_binary(self.path) as file:
            yield from self._items(file)

    def count(self) -> int | None:
        if self.path == STDIN:
            return None
        with storage.open_binary(self.path) as file:
            return sum(not line.isspace() for line in file)

    def _items(self, lines: Iterable[bytes]) -> Iterator[Item]:
        for number, line in enumerate(lines, 1):
            text = os.fsdecode(line.strip(b"\r\n"))
            if text.startswith("{"):
                yield self._record(text, number)
            elif text.startswith(_ADDRESS):
                yield _address(text, self.options)
            elif text.strip():
                yield _file_item(text, text.lstrip("/"))

    def _record(self, text: str, number: int) -> Item:
        where = f"{'stdin' if self.path == STDIN else self.path}:{number}"
        root = self.options.image_root or ("." if self.path == STDIN else str(Path(self.path).parent))
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            row = Rejected(where, "", f"invalid JSON: {error}")
        return _record_item(where, row, f"{PurePath(self.path).stem}/{number}", root, self.options)
