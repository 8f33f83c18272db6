"""Images of a request: which sources are allowed, and how much a request may hold. Decoding is left to the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

from PIL import Image

from mmchat.data.image_refs import ImageDataUri
from mmchat.errors import UserError
from mmchat.images import image_size, load_image
from mmchat.serving.errors import ApiError, invalid
from mmchat.serving.settings import Limits


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


def check_sources(sources: Sequence[ImageSource], limits: Limits, allow_addresses: bool) -> None:
    """Refuse too many images and sources that are not allowed, before any is read.

    Raises:
        ApiError: 400.
    """
    if len(sources) > limits.images:
        raise invalid(
            f"the request has {len(sources)} images, more than the limit of {limits.images}",
            "messages",
            "too_many_images",
        )
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
    sources: Sequence[ImageSource], fetch: Callable[[str], bytes], limits: Limits
) -> list[Callable[[], Image.Image]]:
    """Read the encoded bytes of all images and check how many pixels they claim in all.

    Args:
        sources: Checked by `check_sources`.
        fetch: Address to bytes. Raises UserError.
        limits: `pixels` is used.

    Returns:
        For each image a function that decodes it. It raises UserError if that fails.

    Raises:
        ApiError: 400: an image cannot be read, or there are too many pixels.
    """
    openers: list[Callable[[], Image.Image]] = []
    pixels = 0
    for source in sources:
        try:
            data = fetch(source.url) if source.is_address else ImageDataUri(source.url).read()
            name = source.param.removesuffix(".image_url.url")
            width, height = image_size(data, max_pixels=limits.pixels, name=name)
        except UserError as error:
            raise invalid(str(error), source.param, "invalid_image") from None
        pixels += width * height
        if pixels > limits.pixels:
            raise too_many_pixels(pixels, limits, source.param)
        openers.append(partial(load_image, data, max_pixels=limits.pixels, name=name))
    return openers


def too_many_pixels(pixels: int, limits: Limits, param: str) -> ApiError:
    """The error of a request whose images have too many pixels together."""
    return invalid(
        f"the images up to here have {pixels:,} pixels in all, more than the limit of {limits.pixels:,}; "
        "make them smaller",
        param,
        "too_many_pixels",
    )


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
