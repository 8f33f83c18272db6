"""Cut an image into the squares of a tiling. PIL only."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmchat.vision.transforms.anyres import AnyRes
from mmchat.vision.transforms.split import Split
from mmchat.vision.transforms.strips import LARGEST_PIXELS, pad_and_resize
from mmchat.vision.transforms.tiling import Size, Tiling

if TYPE_CHECKING:
    from mmchat.vision.spec import Preprocessing

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
BLACK = (0, 0, 0)


def cut(image: Image.Image, preprocessing: "Preprocessing", side: int, several: bool) -> list[Image.Image]:
    """The squares of an image, in the order of its views.

    Args:
        image: An RGB image.
        preprocessing: One with a tiling.
        side: Of a square in pixels.
        several: Whether its conversation has several images.
    """
    tiling, resample = preprocessing.tiling, RESAMPLING[preprocessing.resample]
    if several and tiling.one_view_if_several:
        return [padded_square(image, mean_colour(preprocessing), side, resample)]
    return _CUTS[type(tiling)](image, tiling, side, resample)


def tiles(image: Image.Image, tiling: Tiling, side: int, resample: Image.Resampling) -> list[Image.Image]:
    """Resize the image to its grid and cut it; a thumbnail is last."""
    columns, rows = tiling.grid(image.size, side)
    squares = in_squares(image.resize((columns * side, rows * side), resample), side)
    if len(squares) < tiling.views(image.size, side):
        squares.append(image.resize((side, side), resample))
    return squares


def anyres_squares(image: Image.Image, anyres: AnyRes, side: int, resample: Image.Resampling) -> list[Image.Image]:
    """The whole image as a square, then the image resized into its grid, centred on black and cut."""
    rows, columns = anyres.grid(image.size, side)
    resized = image.resize(anyres.resized(image.size, side), resample)
    canvas = centred(resized, (columns * side, rows * side), BLACK)
    return [image.resize((side, side), resample), *in_squares(canvas, side)]


def split_tiles(image: Image.Image, split: Split, side: int, resample: Image.Resampling) -> list[Image.Image]:
    """The image resized to a multiple of the side and cut, with its global view."""
    for size in split.sizes(image.size, side):
        image = image.resize(size, resample)
    squares = in_squares(image, side)
    if split.global_view == "none" or len(squares) == 1:
        return squares
    whole = image.resize((side, side), RESAMPLING[split.global_resample] if split.global_resample else resample)
    return [whole, *squares] if split.global_view == "first" else [*squares, whole]


_CUTS: dict[type, Callable[[Image.Image, Any, int, Image.Resampling], list[Image.Image]]] = {
    Tiling: tiles,
    AnyRes: anyres_squares,
    Split: split_tiles,
}


def in_squares(image: Image.Image, side: int) -> list[Image.Image]:
    """Cut an image whose sides are multiples of `side` into squares, in reading order."""
    width, height = image.size
    corners = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
    return [image.crop((left, top, left + side, top + side)) for left, top in corners]


def padded_square(
    image: Image.Image, colour: tuple[int, int, int], side: int, resample: Image.Resampling
) -> Image.Image:
    """The image centred on a square of `colour`, resized to `side`."""
    if max(image.size) ** 2 > LARGEST_PIXELS:
        return pad_and_resize(image, colour, side, resample)
    return pad_to_square(image, colour).resize((side, side), resample)


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centre the image on a square of `colour` (LLaVA, llava/mm_utils.py `expand2square`)."""
    return centred(image, (max(image.size),) * 2, colour)


def mean_colour(preprocessing: "Preprocessing") -> tuple[int, int, int]:
    """The colour that is nearly 0 after normalising."""
    red, green, blue = (int(channel * 255) for channel in preprocessing.mean)
    return red, green, blue


def centred(image: Image.Image, size: Size, colour: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of a canvas of `colour`."""
    if image.size == size:
        return image
    canvas = Image.new("RGB", size, colour)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas
