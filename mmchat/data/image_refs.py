"""Where a record's image is: a file, bytes, a stretch of a tar shard, an address. Nothing is read before `read`."""

import base64
import binascii
import io
import posixpath
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.ContainerIO import ContainerIO

from mmchat.data import storage
from mmchat.errors import UserError
from mmchat.images import image_size, load_image, resolve_inside

FETCH_SECONDS = 30
MAX_FETCHED_BYTES = 64 << 20
"""An address that sends more than this is no image for training."""


class ImageRef:
    """One image of a record. `name` is what messages call it."""

    name: str

    def read(self) -> bytes:
        """The encoded bytes; UserError where they cannot be had."""
        raise NotImplementedError

    def open(self, draft: int | None = None) -> Image.Image:
        """The decoded RGB image; `draft` and UserError as `images.load_image`."""
        return load_image(self.read(), name=self.name, draft=draft)

    def size(self) -> tuple[int, int]:
        """Width and height of the decoded image, from its header; UserError as `open`."""
        with self.stream() as file:
            return image_size(file, name=self.name)

    def stream(self) -> BinaryIO:
        """The encoded bytes as a file to be closed, read as far as need be; UserError as `read`."""
        return io.BytesIO(self.read())


@contextmanager
def _about_an_image() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"image {error}") from None


@dataclass(frozen=True)
class ImageFile(ImageRef):
    """`path` as the record writes it, below the source's image root."""

    root: str
    path: str

    @property
    def name(self) -> str:
        return self.resolve()

    def resolve(self) -> str:
        """UserError where the path leaves the root."""
        if not storage.is_remote(self.root):
            return str(_resolved(self.root, self.path))
        inside = posixpath.normpath(self.path)
        if "\0" in inside or inside.startswith(("/", "..")) or storage.is_remote(self.path):
            problem = f"image path {self.path!r} leaves the image root {self.root}; give a path below it"
            raise UserError(problem, kind="path_outside_root")
        return storage.join(self.root, inside)

    def read(self) -> bytes:
        path = self.resolve()
        with _about_an_image():
            return storage.read_bytes(path)

    def stream(self) -> BinaryIO:
        path = self.resolve()
        with _about_an_image():
            return storage.open_binary(path)


@dataclass(frozen=True)
class ImageBytes(ImageRef):
    data: bytes = field(repr=False)
    name: str = "bytes"

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class ImageDataUri(ImageRef):
    """`data:image/png;base64,...` (RFC 2397), kept as it came and decoded when read."""

    uri: str = field(repr=False)
    name: str = "data URI"

    def read(self) -> bytes:
        header, comma, body = self.uri.partition(",")
        if not comma or not header.endswith(";base64"):
            raise UserError(
                f"image {self.uri[:40]!r} is no base64 data URI; expected data:image/png;base64,...",
                "undecodable_image",
            )
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"image {self.uri[:40]!r}... is no valid base64: {error}", "undecodable_image") from None


@dataclass(frozen=True)
class ImageInShard(ImageRef):
    """Bytes [start, stop) of a larger file: a member of a tar shard."""

    file: str
    start: int
    stop: int
    name: str

    def read(self) -> bytes:
        return storage.read_bytes(self.file, self.start, self.stop)

    def stream(self) -> BinaryIO:
        return ContainerIO(storage.open_binary(self.file), self.start, self.stop - self.start)


@dataclass(frozen=True)
class ImageUrl(ImageRef):
    url: str

    @property
    def name(self) -> str:
        return self.url[:200]

    def read(self) -> bytes:
        try:
            with urllib.request.urlopen(self.url, timeout=FETCH_SECONDS) as answer:
                data = answer.read(MAX_FETCHED_BYTES + 1)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise UserError(f"image {self.name} could not be fetched: {error}") from None
        if len(data) > MAX_FETCHED_BYTES:
            raise UserError(f"image {self.name} is larger than {MAX_FETCHED_BYTES >> 20} MiB; fetch it by hand")
        return data


def make_image_ref(entry: Any, root: str, allow_http: bool) -> ImageRef:
    """The image that a record's entry means: a path, an address, a data URI, bytes, or `{"bytes", "path"}`.

    A local file is looked up, not read.

    Raises:
        UserError: the entry is none of these, its file does not exist or lies outside `root`, or it would have
            to be fetched although `allow_http` is off.
    """
    if isinstance(entry, ImageRef):
        return entry
    if isinstance(entry, bytes):
        return ImageBytes(entry)
    if isinstance(entry, Mapping):  # how Hugging Face `datasets` stores an image
        if isinstance(entry.get("bytes"), bytes):
            return ImageBytes(entry["bytes"], str(entry.get("path") or "bytes"))
        entry = entry.get("path")
    if not isinstance(entry, str):
        raise UserError(f"an image must be a path, an address, a data URI or bytes, found {entry!r:.80}")
    if entry.startswith("data:"):
        return ImageDataUri(entry)
    if entry.startswith(("http://", "https://")):
        if not allow_http:
            problem = f"image {entry[:200]} would have to be fetched; allow it with allow_http, or download it"
            raise UserError(problem, kind="not_fetched")
        return ImageUrl(entry)
    return _file(root, entry)


def _file(root: str, path: str) -> ImageFile:
    image = ImageFile(root, path)
    if storage.is_remote(root):
        image.resolve()
        return image  # asking for every single file would take longer than reading it once
    try:
        found = _resolved(root, path)
        is_file = found.is_file()
    except (OSError, UnicodeEncodeError) as error:
        # a name longer than the file system takes, a folder that may not be entered, half a character
        why = error.strerror if isinstance(error, OSError) else "no file can have this name"
        raise UserError(f"image {path!r:.80} cannot be looked up: {why}", "missing_image") from None
    if not is_file:
        raise UserError(f"image {found} does not exist", kind="missing_image")
    return image


@lru_cache(maxsize=4096)
def _resolved(root: str, path: str) -> Path:
    return resolve_inside(Path(root), path)
