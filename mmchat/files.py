"""Small files: read with clear errors, written atomically, so that a crash leaves the old file or the new one."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from mmchat.errors import UserError

CANNOT_WRITE = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
"""Errors of a folder or a disk where nothing can be written."""


class CannotWriteError(UserError, OSError):
    """A full or read-only disk, a folder that may not be written, an impossible name. The message names the file."""

    def __str__(self) -> str:
        return str(self.args[0])  # OSError would print its number


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside the `with`, an error of `CANNOT_WRITE` becomes one that names `path`, which is written there.

    Raises:
        CannotWriteError: nothing can be written.
    """
    try:
        yield
    except OSError as error:  # also one that names a file within `path`
        if error.errno not in CANNOT_WRITE:
            raise
        named = CannotWriteError(f"{path} cannot be written: {error.strerror}")
        named.errno, named.strerror = error.errno, error.strerror
        raise named from error
    except SafetensorError as error:  # how it reports an OSError while it writes
        if "serializ" not in str(error) or "I/O error" not in str(error):
            raise
        raise CannotWriteError(f"{path} cannot be written: {error}") from error


_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def refuse_special(path: str | Path) -> None:
    """Refuse a file whose reading may wait or never end.

    Raises:
        UserError: it is a pipe, a device or a socket.
        OSError: it is missing, or cannot be looked at.
    """
    kind = _SPECIAL.get(stat.S_IFMT(Path(path).stat().st_mode))
    if kind:
        raise UserError(f"{path} is {kind}, expected a regular file; write what it gives to a file first")


MAX_JSON_BYTES = 256 * 2**20
"""Largest JSON file that is read whole. The largest tokenizers have 40 MB."""


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: the file is missing, is not JSON, or is too large to be read whole.
    """
    try:
        refuse_special(path)
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            limit = format_megabytes(MAX_JSON_BYTES)
            raise UserError(f"{path} has {format_megabytes(size)}, expected a JSON file of {limit} at most")
        return json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, expected a JSON file") from None
    except OSError as error:  # no permission, or a link to itself
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, or a number of 4,300 digits
        raise UserError(f"{path} is not valid JSON: {error}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object, such as a config that another program wrote.

    Raises:
        UserError: the file is missing, is not JSON, or holds another value.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, expected an object: {{...}}")
    return value


MAX_YAML_CHARACTERS = 2**19
"""Longest YAML text. PyYAML takes a few seconds for it."""
MAX_YAML_VALUES = 1_000_000
"""Most values of a YAML text, those of an alias counted again wherever it stands."""
MAX_YAML_NUMBER = 1000
"""Longest number in YAML, in characters: `1:1:1...` takes time that grows with the square of its length."""


def parse_yaml(text: str) -> Any:
    """Parse YAML that may be a stranger's: plain values only, in bounded time and memory.

    Raises:
        UserError: it is not YAML, or is too long, too deep, or too large once its aliases are expanded.
    """
    import yaml  # here, because most importers of this module read no YAML

    if len(text) > MAX_YAML_CHARACTERS:
        raise UserError(f"it has more than {MAX_YAML_CHARACTERS:,} characters")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        if _yaml_values(root, {}) > MAX_YAML_VALUES:
            raise UserError(f"its aliases expand to more than {MAX_YAML_VALUES:,} values; write them out")
        return loader.construct_document(root)
    except RecursionError:
        raise UserError("its values are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: impossible dates and numbers
        raise UserError(" ".join(str(error).split())) from None


def _yaml_values(node: Any, counted: dict[int, int | None]) -> int:
    """Number of values of a node, those of an alias counted again wherever it stands.

    Args:
        node: The node.
        counted: `id` of a node -> its number; None while it is counted.
    """
    if id(node) in counted:
        if (known := counted[id(node)]) is None:
            raise UserError("an alias stands inside of what it names")
        return known
    counted[id(node)] = None
    if isinstance(node.value, str):
        if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_YAML_NUMBER:
            raise UserError(f"it has a number of {len(node.value):,} characters, expected {MAX_YAML_NUMBER:,} at most")
        total = 1
    else:
        inner = [one for item in node.value for one in (item if isinstance(item, tuple) else (item,))]
        total = 1 + sum(_yaml_values(one, counted) for one in inner)
    counted[id(node)] = total
    return total


def read_json_lines(path: Path) -> list[Any]:
    """Parse a file with one JSON value per line.

    Not by `splitlines`, which also splits at U+2028 and similar characters that text may contain.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def split_complete_lines(path: Path) -> tuple[list[bytes], bytes]:
    """The complete lines of a file that is appended to, without newlines, and the rest after the last newline.

    A killed process may leave such a rest, which may end inside a character: hence bytes.
    """
    *lines, rest = path.read_bytes().split(b"\n")
    return lines, rest


def as_json_line(value: Any) -> bytes:
    """One line of UTF-8. Lone surrogates, which stand for undecodable bytes in file names, become JSON's `\\udc..`."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value per line, atomically."""
    write_bytes(path, b"".join(map(as_json_line, values)))


def append_json_line(path: Path, value: Any) -> None:
    """Append one JSON value as a line; the file and its folder are created if missing."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(as_json_line(value))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes, atomically; the folder is created if missing."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, path.with_name(f".{path.name}.{os.getpid()}.tmp")) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """A file of any length that appears at `path` once it is complete and flushed. Raises `CannotWriteError`.

    Args:
        temporary: where it is written first, in the same folder. The default depends on `path` alone, so that a killed
            process leaves one such file at most; it must not be written by two processes at once.
    """
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace_directory(temporary: Path, final: Path) -> None:
    """Rename the finished directory `temporary` to `final`, which may exist; one of the two is complete at any time."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def staged_directory(final: Path) -> Iterator[Path]:
    """A path next to `final` to write a directory to; it replaces `final` at the end.

    It is deleted if the block raises, or is interrupted, and `final` stays as it was. If `final` is a link, the
    directory that it names is written.

    Raises:
        CannotWriteError: the disk is full, the folder may not be written, or the name is impossible.
    """
    target = final.resolve()
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with writing(final):
            yield aside
            replace_directory(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds an existing `path`."""
    return shutil.disk_usage(path).free


def format_megabytes(size: float) -> str:
    """`"1,234.5 MB"` (10^6 bytes)."""
    return f"{size / 1e6:,.1f} MB"


def shown(path: str | Path) -> str:
    """A path, or a message about one, as printable text: file names may be arbitrary bytes."""
    return os.fsencode(path).decode("utf-8", "replace")
