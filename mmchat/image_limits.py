"""How much the images of one conversation may hold. The server and the demo check strangers' images with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmchat.errors import UserError
from mmchat.images import image_size


class ImageLimitError(UserError):
    """Images exceed a limit.

    Args:
        code: A word for programs: `too_many_images`, `image_too_large`, `too_many_pixels`.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ImageLimits:
    """Limits of the images of one conversation, which are all decoded for each answer."""

    count: int
    file_bytes: int
    """Of one image, encoded."""
    pixels: int
    """Width x height of one image. Decoded it takes 3 bytes a pixel."""
    total_pixels: int
    """Of all images together."""

    def check_count(self, count: int) -> None:
        """Raises ImageLimitError for too many images."""
        if count > self.count:
            raise ImageLimitError(f"{count} images are more than the limit of {self.count}", "too_many_images")

    def check_bytes(self, size: int, name: str) -> None:
        """Raises ImageLimitError for a file of too many bytes."""
        if size > self.file_bytes:
            problem = f"image {name} has {size:,} bytes, more than the limit of {self.file_bytes:,}"
            raise ImageLimitError(problem, "image_too_large")

    def admit(self, data: bytes, name: str, before: Sequence[tuple[int, int]] = ()) -> tuple[int, int]:
        """Width and height of one more image, from its header: nothing is decoded.

        Args:
            data: The bytes of its file.
            name: What messages call it.
            before: Width and height of the images that were admitted before.

        Raises:
            ImageLimitError: It exceeds a limit, alone or with those before.
            UserError: It is not an image.
        """
        self.check_count(len(before) + 1)
        self.check_bytes(len(data), name)
        width, height = image_size(data, name=name)
        if width * height > self.pixels:
            problem = (
                f"image {name} has {width}x{height} pixels, more than the limit of {self.pixels:,}; make it smaller"
            )
            raise ImageLimitError(problem, "too_many_pixels")
        _check_cost(data, self.pixels, name)
        total = width * height + sum(width * height for width, height in before)
        if total > self.total_pixels:
            raise ImageLimitError(
                f"with image {name} there are {total:,} pixels in all images, more than the limit of "
                f"{self.total_pixels:,}; make them smaller",
                "too_many_pixels",
            )
        return width, height


def _check_cost(data: bytes, pixels: int, name: str) -> None:
    """Raises ImageLimitError for an image that takes more memory to decode than one of `pixels` in most formats."""
    try:
        image_size(data, pixels, name)
    except UserError as error:
        raise ImageLimitError(str(error), "too_many_pixels") from None
