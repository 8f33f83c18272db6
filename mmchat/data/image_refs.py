"""References to images: a file, bytes, a member of a tar shard, a URL. Nothing is read before `read` or `open`."""

import base64
import binascii
import contextlib
import io
import posixpath
import tarfile
import urllib.parse
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
from mmchat.data.file_names import spelled_as_on_disk
from mmchat.errors import UserError
from mmchat.images import MAX_PIXELS, image_size, load_image, resolve_inside

SHORTEST_BASE64 = 64
"""Characters that bare base64 has more of (vlmeval/dataset/image_base.py takes shorter cells as references)."""
IMAGE_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0")
"""First bytes of PNG, JPEG, GIF, WebP, BMP, TIFF in both byte orders; of AVIF, HEIC and JPEG 2000 a box's size."""
_LOOKED_AT = 80
_URL_ALPHABET = str.maketrans("-_", "+/")


class ImageRef:
    """One image of a record, not yet read. Error messages call it `name`."""

    name: str

    def read(self) -> bytes:
        """The encoded bytes. Raises UserError if they cannot be read."""
        raise NotImplementedError

    def open(self, draft: int | None = None, max_pixels: int | None = None) -> Image.Image:
        """The decoded RGB image.

        Args:
            draft: As in `images.load_image`.
            max_pixels: As there; None is its default.

        Raises:
            UserError: As there.
        """
        return load_image(self.read(), max_pixels or MAX_PIXELS, self.name, draft)

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

    def open(self, draft: int | None = None, max_pixels: int | None = None) -> Image.Image:
        if storage.is_remote(self.root):  # one request
            return super().open(draft, max_pixels)
        with self.stream() as file:  # encoded bytes and pixels are not in memory together
            return load_image(file, max_pixels or MAX_PIXELS, self.name, draft)

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
        if not comma or not header.lower().endswith(";base64"):
            raise UserError(
                f"image {self.uri[:40]!r} is not a base64 data URI; expected data:image/png;base64,...",
                "undecodable_image",
            )
        try:
            return decode_base64(body)
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
        return read_member(self.file, self.start, self.stop)

    def stream(self) -> IO[bytes]:
        check_member(self.file, self.start, self.stop)
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


def decode_base64(text: str) -> bytes:
    """Decode base64 as it is written: with line breaks (MIME: 76 characters, PEM: 64), blanks, without padding, in the
    alphabet of URLs (RFC 4648, sections 3 and 5), or percent-encoded as a part of a URL.

    Raises:
        ValueError: It is not base64, or is cut off.
    """
    text = "".join(urllib.parse.unquote(text).split()).translate(_URL_ALPHABET)
    return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)


def is_bare_base64(entry: str) -> bool:
    """Whether a text is an encoded image itself, without `data:`, as VLMEvalKit, M3IT and Ollama store it.

    It is, if it is long, holds only base64's characters, and its first bytes are those of an image. A path to an image
    has a dot, which base64 has not.
    """
    if len(entry) <= SHORTEST_BASE64 or "." in entry[:_LOOKED_AT]:
        return False
    beginning = "".join(entry[:_LOOKED_AT].split())
    with contextlib.suppress(ValueError):
        return decode_base64(beginning[: len(beginning) // 4 * 4]).startswith(IMAGE_SIGNATURES)
    return False


def is_encoded(entry: Any) -> bool:
    """Whether an entry holds the image itself."""
    if isinstance(entry, str):
        return entry[:5].lower() == "data:" or is_bare_base64(entry)
    return isinstance(entry, bytes | ImageRef) or (isinstance(entry, Mapping) and isinstance(entry.get("bytes"), bytes))


def is_address(entry: Any) -> bool:
    """Whether an entry is an address on the net."""
    place = entry.get("path") if isinstance(entry, Mapping) else entry
    return isinstance(place, str) and place[:8].lower().startswith(("http://", "https://"))


def read_member(shard: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a tar file, which an index says are a member.

    Raises:
        UserError: They are not, so the shard was changed after it was indexed.
    """
    if storage.is_remote(shard):  # its checksum is compared when it is opened; the header would be a request more
        return storage.read_bytes(shard, start, stop)
    data = storage.read_bytes(shard, start - tarfile.BLOCKSIZE, stop)
    _check_header(data[: tarfile.BLOCKSIZE], shard, stop - start)
    return data[tarfile.BLOCKSIZE :]


def check_member(shard: str, start: int, stop: int) -> None:
    """`read_member`, without the bytes."""
    if not storage.is_remote(shard):
        _check_header(storage.read_bytes(shard, start - tarfile.BLOCKSIZE, start), shard, stop - start)


def _check_header(header: bytes, shard: str, size: int) -> None:
    """A member's data follow its header, which has a checksum. A pax record replaces a size that does not fit there."""
    try:
        member = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        member = None
    if member is None or member.size not in (0, size):
        raise UserError(f"{shard} was changed after it was indexed; delete {shard}.index.npz if there is one")


def make_image_ref(entry: Any, root: str, allow_http: bool) -> ImageRef:
    """A reference to the image of a record's entry.

    Args:
        entry: A path, `file://` and a path, a URL, a data URI or its bare base64, bytes, or `{"bytes", "path"}` as
            Hugging Face `datasets` stores it.
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
    if entry[:5].lower() == "data:":
        return ImageDataUri(entry)
    if is_bare_base64(entry):
        return ImageDataUri(f"data:;base64,{entry}", "base64")
    if is_address(entry):
        if not allow_http:
            problem = f"image {entry[:200]} is a URL; set allow_http to fetch it, or download it"
            raise UserError(problem, kind="not_fetched")
        return ImageUrl(entry)
    return _file(root, _path_of_uri(entry, root))


def _path_of_uri(entry: str, root: str) -> str:
    """The path that a `file:` address means; another entry as it is.

    Qwen's vision utilities take what follows `file://` as a path, unchanged; RFC 8089 writes it percent-encoded, with
    three slashes, one, or the host localhost. The path as it stands counts where there is such a file.
    """
    if entry[:5].lower() != "file:":
        return entry
    path = entry[7:] if entry[5:7] == "//" else entry[5:]
    path = path.removeprefix("localhost") if path.startswith("localhost/") else path
    decoded = urllib.parse.unquote(path)
    with contextlib.suppress(OSError, ValueError):
        return path if decoded == path or _resolved(root, path).is_file() else decoded
    return decoded


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
        return ImageFile(root, spelled_as_on_disk(root, path))
    return image


@lru_cache(maxsize=4096)
def _resolved(root: str, path: str) -> Path:
    return resolve_inside(Path(root), path)
