"""What a visitor may send, and how an upload becomes an image that needs no file."""

import base64
import io
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mmchat.errors import UserError
from mmchat.image_limits import ImageLimitError, ImageLimits
from mmchat.images import load_image

THUMBNAIL = 512
"""Longest side, in pixels, of images in the chat."""


@dataclass(frozen=True)
class Limits:
    """Limits of a demo. Images are counted over a whole conversation, because each answer processes all of them."""

    file_mb: int = 20
    """Largest upload."""
    images: int = 8
    pixels: int = 25_000_000
    """Of one image. Decoded it takes 3 bytes a pixel."""
    total_pixels: int = 60_000_000
    """Of all images of a conversation."""
    characters: int = 20_000
    """Of a question, and of the system prompt."""
    new_tokens: int = 1024
    in_flight: int = 4
    """Answers that one address gets at a time. Others wait."""
    waiting: int = 8
    """Questions of one address that may wait."""

    @property
    def of_images(self) -> ImageLimits:
        """Those of the images of a conversation."""
        return ImageLimits(self.images, self.file_mb * 2**20, self.pixels, self.total_pixels)


@dataclass(frozen=True)
class UploadedImage:
    """An image that a visitor sent: the bytes of its file, checked, in memory only."""

    name: str
    data: bytes = field(repr=False)
    size: tuple[int, int]
    thumbnail: str = field(repr=False)
    """Data URI."""


def check_text(text: str, limits: Limits, what: str = "question") -> str:
    """The text.

    Raises:
        UserError: It is too long.
    """
    if len(text) > limits.characters:
        raise UserError(f"the {what} has {len(text):,} characters; the limit is {limits.characters:,}")
    return text


def admit(name: str, data: bytes, before: list[UploadedImage], limits: Limits) -> UploadedImage:
    """Check an image by its header, then decode it once for a thumbnail.

    Args:
        name: What messages call it.
        data: The bytes of its file.
        before: Images that the conversation has already.
        limits: The limits.

    Raises:
        UserError: It cannot be read or exceeds a limit.
    """
    try:
        size = limits.of_images.admit(data, name, [image.size for image in before])
    except ImageLimitError as error:
        if error.code == "too_many_images":
            raise UserError(f"{error}; start a new chat for {name}") from None
        raise
    shown = load_image(data, limits.pixels, name, draft=THUMBNAIL)
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    return UploadedImage(name, data, size, thumbnail_uri(shown))


def take_uploads(paths: Sequence[Path], before: list[UploadedImage], limits: Limits) -> list[UploadedImage]:
    """`admit` files, and delete them once all are taken. If one is refused, the visitor still has the others."""
    images: list[UploadedImage] = []
    for path in paths:
        limits.of_images.check_bytes(path.stat().st_size, path.name)
        images.append(admit(path.name, path.read_bytes(), [*before, *images], limits))
    for path in paths:
        path.unlink(missing_ok=True)
    return images


def thumbnail_uri(image: Image.Image) -> str:
    """A data URI: PNG if the image is small, where JPEG would blur it, else JPEG."""
    small = max(image.size) < THUMBNAIL
    with io.BytesIO() as encoded:
        image.save(encoded, "PNG" if small else "JPEG", quality=85)
        kind = "png" if small else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


class Turnstile:
    """Lets each address have a limited number of answers at a time, so that one visitor does not fill the batch."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def waiting(self, address: str) -> Iterator[None]:
        """Be one of those that wait.

        Raises:
            UserError: Too many wait already.
        """
        with self._lock:
            if self._waiting[address] >= self._limits.waiting:
                raise UserError(
                    f"{self._limits.in_flight} of your questions are being answered and {self._waiting[address]} wait; "
                    "try again when one is done"
                )
            self._waiting[address] += 1
        try:
            yield
        finally:
            self._leave(self._waiting, address)

    def enter(self, address: str) -> bool:
        """Enter if there is room. Who entered must `leave`."""
        with self._lock:
            if self._inside[address] >= self._limits.in_flight:
                return False
            self._inside[address] += 1
            return True

    def leave(self, address: str) -> None:
        """Make room."""
        self._leave(self._inside, address)

    def _leave(self, counts: Counter[str], address: str) -> None:
        with self._lock:
            counts[address] -= 1
            if not counts[address]:
                del counts[address]
