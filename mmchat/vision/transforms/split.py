"""Splitting: an image resized to a multiple of a tile's side, its tiles with row and column markers, and a global view.

After Idefics3 and SmolVLM as transformers has them (models/idefics3/image_processing_pil_idefics3.py,
processing_idefics3.py) and nanoVLM (huggingface/nanoVLM, data/custom_transforms.py and data/processors.py). No torch.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, Literal

from mmchat.errors import UserError
from mmchat.vision.layout import ImageLayout
from mmchat.vision.transforms.tiling import Size, check_range

LONGEST_SIDE = 4096
"""Idefics3 resizes no image to more pixels on a side."""
MOST_PIXELS = 16_384
"""Largest `longest_edge`."""
DEFAULT_TILES = 4
_TOKEN = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True)
class Markers:
    """Literal text around the slots of views. Added tokens of the tokenizer in it are control tokens.

    Attributes:
        tile: Before each tile; `{row}` and `{column}` are its place, counted from 1.
        row_end: After the last tile of each row.
        whole: Before the global view of an image that is split.
        alone: Before the only view of an image that is not split.
        end: After the last view.
        numbered: Before everything if the conversation has several images; `{number}` is the image's, from 0.
    """

    tile: str = "<fake_token_around_image><row_{row}_col_{column}>"
    row_end: str = "\n"
    whole: str = "\n<fake_token_around_image><global-img>"
    alone: str = "<fake_token_around_image><global-img>"
    end: str = "<fake_token_around_image>"
    numbered: str = ""


NANOVLM_MARKERS = Markers(
    "<row_{row}_col_{column}>", "", "<|global_image|>", "<|global_image|>", "", "<image: {number}>"
)


@dataclass(frozen=True)
class Split:
    """Settings of splitting. The defaults are Idefics3's.

    Attributes:
        longest_edge: Side in pixels to which the longer side is resized; with rule "nanovlm" and without `enlarge`, the
            most that it may have. None: four tiles.
        rule: How the size is rounded. "idefics3" resizes twice: to the longest edge, then to multiples of the tile;
            "nanovlm" once.
        enlarge: With rule "nanovlm": whether smaller images are enlarged to `longest_edge` too. Idefics3 always does.
        global_view: Whether the view of the whole image is the first, the last or left out.
        global_resample: How the whole image is resized; None: as the tiles.
        markers: Text between the views.
        cut: Whether images are cut. If not, an image is resized to `longest_edge` and then to one tile (Idefics3's
            `do_image_splitting`).

    Raises:
        UserError: A value is unknown or out of range.
    """

    longest_edge: int | None = None
    rule: Literal["idefics3", "nanovlm"] = "idefics3"
    enlarge: bool = True
    global_view: Literal["first", "last", "none"] = "last"
    global_resample: str | None = None
    markers: Markers = Markers()
    cut: bool = True
    has_newline: ClassVar[bool] = False
    one_view_if_several: ClassVar[bool] = False
    fewest_views: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if isinstance(self.markers, dict):
            object.__setattr__(self, "markers", Markers(**self.markers))
        if self.longest_edge is not None:
            check_range("split: longest_edge", self.longest_edge, MOST_PIXELS)
        _check_choice("rule", self.rule, ("idefics3", "nanovlm"))
        _check_choice("global_view", self.global_view, ("first", "last", "none"))
        if self.rule == "idefics3" and not self.enlarge:
            raise UserError("split: enlarge false belongs to rule 'nanovlm'; Idefics3 enlarges every image")
        if self.rule == "nanovlm" and not self.cut:
            raise UserError("split: cut false belongs to rule 'idefics3'; nanoVLM cuts every image")

    def sizes(self, size: Size, tile: int) -> list[Size]:
        """The sizes to which the image is resized in turn; the last is a multiple of the tile on both sides.

        Args:
            size: Width and height of the image in pixels.
            tile: Side of a tile in pixels.
        """
        longest_edge = self._longest_edge(tile)
        if self.rule == "nanovlm":
            return [_by_long_side(size, tile, longest_edge, self.enlarge)]
        first = _to_longest_edge(size, longest_edge)
        return [first, _to_multiple(first, tile) if self.cut else (tile, tile)]

    def _longest_edge(self, tile: int) -> int:
        longest_edge = DEFAULT_TILES * tile if self.longest_edge is None else self.longest_edge
        if self.rule == "nanovlm" and longest_edge % tile:
            raise UserError(f"split: longest_edge {longest_edge} is not a multiple of the tile's {tile} pixels")
        return longest_edge

    def grid(self, size: Size, tile: int) -> tuple[int, int]:
        """Rows and columns of tiles. Arguments as in `sizes`."""
        width, height = self.sizes(size, tile)[-1]
        return height // tile, width // tile

    def views(self, size: Size, tile: int) -> int:
        """Number of views. Arguments as in `sizes`."""
        rows, columns = self.grid(size, tile)
        return rows * columns + (rows * columns > 1 and self.global_view != "none")

    def layouts(self, sizes: Sequence[Size], tile: int, tokens_per_view: int) -> list[ImageLayout]:
        """Layouts of the images of one conversation. Arguments as in `TowerSpec.layouts`."""
        numbers = [self.markers.numbered.replace("{number}", str(number)) for number in range(len(sizes))]
        before = numbers if len(sizes) > 1 else [""]
        return [
            ImageLayout(self.views(size, tile), (first, *self._parts(*self.grid(size, tile), tokens_per_view)))
            for first, size in zip(before, sizes, strict=False)
        ]

    def _parts(self, rows: int, columns: int, slots: int) -> Iterator[int | str]:
        markers = self.markers
        if rows * columns == 1 and self.global_view != "none":
            yield from (markers.alone, slots, markers.end)
            return
        if self.global_view == "first":
            yield from (markers.whole, slots)
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                yield from (_placed(markers.tile, row, column), slots)
            yield markers.row_end
        if self.global_view == "last":
            yield from (markers.whole, slots)
        yield markers.end

    def marker_tokens(self, tile: int) -> list[str]:
        """The tokens that markers are written with, for tiles of this side, in the order of their first use."""
        most = ceil(self._longest_edge(tile) / tile) if self.cut else 1
        markers = self.markers
        texts = [markers.alone, markers.whole, markers.end, markers.row_end]
        texts += [_placed(markers.tile, row, column) for row in range(1, most + 1) for column in range(1, most + 1)]
        return list(dict.fromkeys(token for text in texts for token in _TOKEN.findall(text)))


def _placed(marker: str, row: int, column: int) -> str:
    return marker.replace("{row}", str(row)).replace("{column}", str(column))


def _check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"split: {name} is {value!r}; expected one of {', '.join(known)}")


def _to_longest_edge(size: Size, longest_edge: int) -> Size:
    """Idefics3's first size: the longer side as given, the shorter one even (`get_resize_output_image_size`)."""
    width, height = size
    aspect = width / height
    if width >= height:
        width, height = longest_edge, _even(int(longest_edge / aspect))
    else:
        width, height = _even(int(longest_edge * aspect)), longest_edge
    width, height = max(width, 1), max(height, 1)
    aspect = width / height
    if width >= height and width > LONGEST_SIDE:
        width, height = LONGEST_SIDE, int(LONGEST_SIDE / aspect)
    elif height > width and height > LONGEST_SIDE:
        width, height = int(LONGEST_SIDE * aspect), LONGEST_SIDE
    return max(width, 1), max(height, 1)


def _even(length: int) -> int:
    return length + length % 2


def _to_multiple(size: Size, tile: int) -> Size:
    """Idefics3's second size (`resize_for_vision_encoder`)."""
    width, height = size
    aspect = width / height
    if width >= height:
        width = ceil(width / tile) * tile
        return width, ceil(int(width / aspect) / tile) * tile
    height = ceil(height / tile) * tile
    return ceil(int(height * aspect) / tile) * tile, height


def _by_long_side(size: Size, tile: int, longest_edge: int, enlarge: bool) -> Size:
    """nanoVLM's size (`DynamicResize._get_new_hw`)."""
    width, height = size
    long, short = max(size), min(size)
    to_long = longest_edge if enlarge else min(longest_edge, ceil(long / tile) * tile)
    to_short = max(ceil(short * (to_long / long) / tile) * tile, tile)
    return (to_long, to_short) if width >= height else (to_short, to_long)
