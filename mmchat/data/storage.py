"""Files of a data set: local, or at an address that fsspec opens (s3://, gs://, hf://, ...).

Local paths bypass fsspec. Nothing is fetched over http(s) unless the user allows it.
"""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mmchat.errors import UserError
from mmchat.files import refuse_special, write_json

HASH_BLOCK = 1 << 24
"""Block size for hashing, in bytes."""


def is_remote(path: str) -> bool:
    return "://" in path


def cache_dir() -> Path:
    """Folder of indexes and fetched files: `MMCHAT_CACHE`, else `~/.cache/mmchat`."""
    return Path(os.environ.get("MMCHAT_CACHE") or Path.home() / ".cache" / "mmchat")


def join(root: str, relative: str) -> str:
    return f"{root.rstrip('/')}/{relative}" if is_remote(root) else str(Path(root, relative))


def list_folder(path: str) -> list[str] | None:
    """Files directly in a folder, sorted; None if `path` is not a folder."""
    if not is_remote(path):
        return sorted(str(p) for p in Path(path).iterdir() if p.is_file()) if Path(path).is_dir() else None
    with _file_errors(path):
        system, inside = _filesystem(path)
        if not system.isdir(inside):
            return None
        return sorted(system.unstrip_protocol(e["name"]) for e in system.ls(inside, detail=True) if e["type"] == "file")


def expand(pattern: str) -> list[str]:
    """Files that match a pattern with `*`, `?` or `[...]`, sorted. Raises UserError if none does."""
    if is_remote(pattern):
        with _file_errors(pattern):
            system, inside = _filesystem(pattern)
            found = [system.unstrip_protocol(name) for name in system.glob(inside)]
    else:
        found = glob.glob(pattern)  # noqa: PTH207 - a pattern may be absolute, which Path.glob refuses
    if not found:
        raise UserError(f"no file matches {pattern}")
    return sorted(found)


def exists(path: str) -> bool:
    if not is_remote(path):
        return Path(path).is_file()
    with _file_errors(path):
        system, inside = _filesystem(path)
        return bool(system.isfile(inside))


def open_binary(path: str) -> BinaryIO:
    """Open a seekable file for reading.

    Raises:
        UserError: It is missing, a folder or no regular file, or its file system cannot be reached.
    """
    with _file_errors(path):
        if not is_remote(path):
            refuse_special(path)
            return Path(path).open("rb")
        system, inside = _filesystem(path)
        return system.open(inside, "rb")


def read_bytes(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes [start, stop) of a file. Of a remote file only these are fetched. Raises UserError as `open_binary`."""
    with _file_errors(path):
        if is_remote(path):
            system, inside = _filesystem(path)
            return system.cat_file(inside, start, stop)
        refuse_special(path)
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else stop - start)


def local_copy(path: str) -> str:
    """The path itself; for a remote file, the path of its cached copy, fetched if missing or changed."""
    if not is_remote(path):
        return path
    import fsspec

    with _file_errors(path):
        options = {"cache_storage": str(cache_dir() / "files"), "check_files": True}
        return fsspec.open_local(f"filecache::{path}", filecache=options)


def content_digest(paths: list[str]) -> str:
    """A BLAKE2b hash over the contents of files, in order.

    Digests are cached by path, size, inode and the times of the last change of content and inode, as in git, so an
    unchanged file is read once.
    """
    digests = hashlib.blake2b(digest_size=16)
    for path in paths:
        digests.update(_file_digest(path).encode())
    return digests.hexdigest()


def _file_digest(path: str) -> str:
    if is_remote(path):
        with _file_errors(path):
            system, inside = _filesystem(path)
            return hashlib.blake2b(repr(system.checksum(inside)).encode(), digest_size=16).hexdigest()
    with _file_errors(path):
        stat = Path(path).stat()
    absolute = str(Path(path).absolute())
    state = {"path": absolute, "size": stat.st_size, "changed": stat.st_mtime_ns}
    state |= {"inode": stat.st_ino, "inode_changed": stat.st_ctime_ns}
    name = hashlib.blake2b(absolute.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    cached = cache_dir() / "digests" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(cached.read_text(encoding="utf-8"))
        if {key: known.get(key) for key in state} == state:
            return known["digest"]
    digest = hashlib.blake2b(digest_size=16)
    with open_binary(path) as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        write_json(cached, {**state, "digest": digest.hexdigest()})
    return digest.hexdigest()


def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(path)


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    """Turn file system errors into a UserError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, expected a file") from None
    except (ImportError, ValueError) as error:
        if not is_remote(path) or isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be opened: {error}") from None  # unknown protocol, or its package is missing
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
