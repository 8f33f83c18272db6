"""Files of a data set, on this machine or behind an address that fsspec opens (s3://, gs://, hf://, ...).

Local paths never pass through fsspec. Nothing is fetched over http unless the user allowed it.
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
from mmchat.files import write_json

HASH_BLOCK = 1 << 24
"""Bytes read at a time."""


def is_remote(path: str) -> bool:
    return "://" in path


def cache_dir() -> Path:
    """Where indexes and fetched files are kept: `MMCHAT_CACHE`, else `~/.cache/mmchat`."""
    return Path(os.environ.get("MMCHAT_CACHE") or Path.home() / ".cache" / "mmchat")


def join(root: str, relative: str) -> str:
    return f"{root.rstrip('/')}/{relative}" if is_remote(root) else str(Path(root, relative))


def list_folder(path: str) -> list[str] | None:
    """Files directly in a folder, sorted; None where `path` is no folder."""
    if not is_remote(path):
        return sorted(str(p) for p in Path(path).iterdir() if p.is_file()) if Path(path).is_dir() else None
    with _explained(path):
        system, inside = _filesystem(path)
        if not system.isdir(inside):
            return None
        return sorted(system.unstrip_protocol(e["name"]) for e in system.ls(inside, detail=True) if e["type"] == "file")


def expand(pattern: str) -> list[str]:
    """The files that a pattern with `*`, `?` or `[...]` names, sorted; UserError where there is none."""
    if is_remote(pattern):
        with _explained(pattern):
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
    with _explained(path):
        system, inside = _filesystem(path)
        return bool(system.isfile(inside))


def open_binary(path: str) -> BinaryIO:
    """A seekable file, opened for reading.

    Raises:
        UserError: it is missing, a folder, or its file system cannot be reached.
    """
    with _explained(path):
        if not is_remote(path):
            return Path(path).open("rb")
        system, inside = _filesystem(path)
        return system.open(inside, "rb")


def read_bytes(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes [start, stop) of a file; behind an address only these are fetched. Raises UserError as `open_binary`."""
    with _explained(path):
        if is_remote(path):
            system, inside = _filesystem(path)
            return system.cat_file(inside, start, stop)
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else stop - start)


def local_copy(path: str) -> str:
    """The path itself, or of a remote file the copy in the cache, fetched when it is new there."""
    if not is_remote(path):
        return path
    import fsspec

    with _explained(path):
        options = {"cache_storage": str(cache_dir() / "files"), "check_files": True}
        return fsspec.open_local(f"filecache::{path}", filecache=options)


def content_digest(paths: list[str]) -> str:
    """A BLAKE2b hash over the contents of files, in order.

    Hashing is remembered by (path, size, time of change), as git does, so an unchanged file is read once only.
    """
    whole = hashlib.blake2b(digest_size=16)
    for path in paths:
        whole.update(_remembered_digest(path).encode())
    return whole.hexdigest()


def _remembered_digest(path: str) -> str:
    if is_remote(path):
        with _explained(path):
            system, inside = _filesystem(path)
            return hashlib.blake2b(repr(system.checksum(inside)).encode(), digest_size=16).hexdigest()
    with _explained(path):
        stat = Path(path).stat()
    state = {"path": str(Path(path).absolute()), "size": stat.st_size, "changed": stat.st_mtime_ns}
    name = hashlib.blake2b(state["path"].encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    memory = cache_dir() / "digests" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(memory.read_text(encoding="utf-8"))
        if {key: known.get(key) for key in state} == state:
            return known["digest"]
    digest = hashlib.blake2b(digest_size=16)
    with open_binary(path) as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_json(memory, {**state, "digest": digest.hexdigest()})
    return digest.hexdigest()


def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(path)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """What a file system raises, as one message that names the file."""
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
