"""References to images: a file, bytes, a member of a tar shard, a URL. Nothing is read before `read` or `open`."""

import base64
import binascii
import io
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.ContainerIO import ContainerIO

from mmchat.data import storage
from mmchat.data.fetching import fetch
from mmchat.errors import UserError
from mmchat.images import image_size, load_image, resolve_inside


class ImageRef:
    """One image of a record, not yet read. Error messages call it `name`."""

    name: str

    def read(self) -> bytes:
        """The encoded bytes. Raises UserError if they cannot be read."""
        raise NotImplementedError

    def open(self, draft: int | None = None) -> Image.Image:
        """The decoded RGB image. `draft` and UserError as in `images.load_image`."""
        return load_image(self.read(), name=self.name, draft=draft)

    def size(self) -> tuple[int, int]:
        """Width and height of the decoded image, read from its header. Raises UserError as `open`."""
        with self.stream() as file:
            return image_size(file, name=self.name)

    def stream(self) -> IO[bytes]:
        """A file of the encoded bytes, read only as far as needed. Close it. Raises UserError as `read`."""
        return io.BytesIO(self.read())


@contextmanager
def _image_errors() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"image {error}") from None


@dataclass(frozen=True)
class ImageFile(ImageRef):
    """A file at `path`, as stored in the record, below the source's image root."""

    root: str
    path: str

    @property
    def name(self) -> str:  # type: ignore[override]  # read-only, as frozen fields are
        """The full path. Raises UserError if it leaves the root."""
        if not storage.is_remote(self.root):
            return str(_resolved(self.root, self.path))
        inside = posixpath.normpath(self.path)
        if "\0" in inside or inside.startswith(("/", "..")) or storage.is_remote(self.path):
            problem = f"image path {self.path!r} leaves the image root {self.root}; give a path below it"
            raise UserError(problem, kind="path_outside_root")
        return storage.join(self.root, inside)

    def read(self) -> bytes:
        path = self.name
        with _image_errors():
            return storage.read_bytes(path)

    def stream(self) -> IO[bytes]:
        path = self.name
        with _image_errors():
            return storage.open_binary(path)


@dataclass(frozen=True)
class ImageBytes(ImageRef):
    data: bytes = field(repr=False)
    name: str = "bytes"

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class ImageDataUri(ImageRef):
    """`data:image/png;base64,...` (RFC 2397), decoded when read."""

    uri: str = field(repr=False)
    name: str = "data URI"

    def read(self) -> bytes:
        header, comma, body = self.uri.partition(",")
        if not comma or not header.endswith(";base64"):
            raise UserError(
                f"image {self.uri[:40]!r} is not a base64 data URI; expected data:image/png;base64,...",
                "undecodable_image",
            )
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"image {self.uri[:40]!r}... is not valid base64: {error}", "undecodable_image") from None


@dataclass(frozen=True)
class ImageInShard(ImageRef):
    """Bytes [start, stop) of a tar shard."""

    file: str
    start: int
    stop: int
    name: str

    def read(self) -> bytes:
        return storage.read_bytes(self.file, self.start, self.stop)

    def stream(self) -> IO[bytes]:
        return ContainerIO(storage.open_binary(self.file), self.start, self.stop - self.start)


@dataclass(frozen=True)
class ImageUrl(ImageRef):
    url: str

    @property
    def name(self) -> str:  # type: ignore[override]  # read-only, as frozen fields are
        return self.url[:200]

    def read(self) -> bytes:
        # Data sets lie in the network of their users, too, so hosts need not be public here.
        return fetch(self.url, private=True)


def make_image_ref(entry: Any, root: str, allow_http: bool) -> ImageRef:
    """A reference to the image of a record's entry.

    Args:
        entry: A path, a URL, a data URI, bytes, or `{"bytes", "path"}` as Hugging Face `datasets` stores it.
        root: Folder that paths are relative to. A local file must exist there; it is not read.
        allow_http: Accept http(s) URLs.

    Raises:
        UserError: The entry is none of these, its file does not exist or is outside `root`, or it is a URL and
            `allow_http` is off.
    """
    if isinstance(entry, ImageRef):
        return entry
    if isinstance(entry, bytes):
        return ImageBytes(entry)
    if isinstance(entry, Mapping):
        if isinstance(entry.get("bytes"), bytes):
            return ImageBytes(entry["bytes"], str(entry.get("path") or "bytes"))
        entry = entry.get("path")
    if not isinstance(entry, str):
        raise UserError(f"an image must be a path, a URL, a data URI or bytes, found {entry!r:.80}")
    if entry.startswith("data:"):
        return ImageDataUri(entry)
    if entry.startswith(("http://", "https://")):
        if not allow_http:
            problem = f"image {entry[:200]} is a URL; set allow_http to fetch it, or download it"
            raise UserError(problem, kind="not_fetched")
        return ImageUrl(entry)
    return _file(root, entry)


def _file(root: str, path: str) -> ImageFile:
    image = ImageFile(root, path)
    if storage.is_remote(root):
        _ = image.name  # checks the path; a lookup per file would take longer than reading it once
        return image
    try:
        found = _resolved(root, path)
        is_file = found.is_file()
    except (OSError, UnicodeEncodeError) as error:
        # A name too long for the file system, a folder without permission, a lone surrogate.
        why = error.strerror if isinstance(error, OSError) else "not a valid file name"
        raise UserError(f"image {path!r:.80} cannot be found: {why}", "missing_image") from None
    if not is_file:
        raise UserError(f"image {found} does not exist", kind="missing_image")
    return image


@lru_cache(maxsize=4096)
def _resolved(root: str, path: str) -> Path:
    return resolve_inside(Path(root), path)
