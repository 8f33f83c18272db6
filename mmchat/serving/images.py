"""Images of a request: which sources are allowed, and how much a request may hold. Decoding is left to the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

from PIL import Image

from mmchat.data.image_refs import ImageDataUri
from mmchat.errors import UserError
from mmchat.image_limits import ImageLimitError, ImageLimits
from mmchat.images import load_image
from mmchat.serving.errors import invalid


@dataclass(frozen=True)
class ImageSource:
    """An image that a request names."""

    url: str
    """A data URI or an http(s) address."""
    param: str
    """Where the request names it: `messages[0].content[1].image_url.url`."""

    @property
    def is_address(self) -> bool:
        """Whether it must be fetched."""
        return self.url[:8].lower().startswith(("http://", "https://"))


def check_sources(sources: Sequence[ImageSource], limits: ImageLimits, allow_addresses: bool) -> None:
    """Refuse too many images and sources that are not allowed, before any is read.

    Raises:
        ApiError: 400.
    """
    try:
        limits.check_count(len(sources))
    except ImageLimitError as error:
        raise invalid(str(error), "messages", error.code) from None
    for source in sources:
        if source.is_address:
            if not allow_addresses:
                raise invalid(
                    "this server fetches no images from addresses; send the image as data:image/png;base64,...",
                    source.param,
                    "image_url_not_allowed",
                )
        elif not source.url.startswith("data:"):
            raise invalid(
                f"an image must be data:image/png;base64,..., found {source.url[:40]!r}", source.param, "invalid_image"
            )


def read_images(
    sources: Sequence[ImageSource], fetch: Callable[[str], bytes], limits: ImageLimits
) -> list[Callable[[], Image.Image]]:
    """Read the encoded bytes of all images and check how many pixels they claim.

    Args:
        sources: Checked by `check_sources`.
        fetch: Address to bytes. Raises UserError.
        limits: What a request may hold.

    Returns:
        For each image a function that decodes it. It raises UserError if that fails.

    Raises:
        ApiError: 400: an image cannot be read, or there are too many pixels.
    """
    openers: list[Callable[[], Image.Image]] = []
    sizes: list[tuple[int, int]] = []
    for source in sources:
        name = source.param.removesuffix(".image_url.url")
        try:
            data = fetch(source.url) if source.is_address else ImageDataUri(source.url).read()
            sizes.append(limits.admit(data, name, sizes))
        except ImageLimitError as error:
            raise invalid(str(error), source.param, error.code) from None
        except UserError as error:
            raise invalid(str(error), source.param, "invalid_image") from None
        openers.append(partial(load_image, data, max_pixels=limits.pixels, name=name))
    return openers


class Once:
    """An image that is decoded once for several choices, when the first of them needs it.

    Args:
        decode: Decodes it.
    """

    def __init__(self, decode: Callable[[], Image.Image]) -> None:
        self._decode = decode
        self._lock = Lock()
        self._image: Image.Image | None = None

    def __call__(self) -> Image.Image:
        with self._lock:
            if self._image is None:
                self._image = self._decode()
            return self._image
