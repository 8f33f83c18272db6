"""InternVL's dynamic tiling: the grid of tiles, and so the number of views, for an image of some size.

After `dynamic_preprocess` in OpenGVLab/InternVL (arXiv:2404.16821, section 3.2). No torch: planning counts views by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from mmchat.errors import UserError
from mmchat.vision.layout import ImageLayout, views_only

Size = tuple[int, int]
"""Width and height of an image, in pixels."""
MOST_TILES = 1024
"""Most tiles of an image in any tiling. Published models have up to 40."""


def check_range(name: str, value: int, most: int) -> None:
    """Raise UserError unless a value, which may come from a foreign file, is a whole number from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"{name} is {value!r:.80}; expected a whole number from 1 to {most:,}")


@dataclass(frozen=True)
class Tiling:
    """Settings of dynamic tiling.

    Attributes:
        min_tiles: Smallest number of tiles.
        max_tiles: Largest number of tiles.
        thumbnail: Whether the whole image is one more view if there are several tiles.
    """

    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    has_newline: ClassVar[bool] = False
    """See `Preprocessing.has_newline`."""
    one_view_if_several: ClassVar[bool] = False
    """Whether the images of a conversation with several have one view each."""

    def __post_init__(self) -> None:
        is_whole = type(self.min_tiles) is type(self.max_tiles) is int
        if not (is_whole and 1 <= self.min_tiles <= self.max_tiles <= MOST_TILES):
            raise UserError(
                f"tiling: expected 1 <= min_tiles <= max_tiles <= {MOST_TILES}, found min_tiles "
                f"{self.min_tiles!r:.80} and max_tiles {self.max_tiles!r:.80}"
            )

    def grid(self, size: Size, image_size: int) -> tuple[int, int]:
        """The grid whose aspect ratio is nearest to the image's.

        Of equally near grids, a larger one wins if the image has more than half its pixels. Two grids of one area can
        be equally near only if `min_tiles` is above 1: the one with fewer columns wins, as in transformers'
        GotOcr2ImageProcessor. The original depends on the order of a Python set.

        Args:
            size: Width and height of the image in pixels.
            image_size: Side of a tile in pixels.

        Returns:
            Columns and rows.
        """
        width, height = size
        aspect = width / height
        best, nearest = (1, 1), float("inf")
        for columns, rows in _grids(self.min_tiles, self.max_tiles):
            distance = abs(aspect - columns / rows)
            large_enough = width * height > 0.5 * image_size**2 * columns * rows
            if distance < nearest or (distance == nearest and large_enough):
                best, nearest = (columns, rows), distance
        return best

    def views(self, size: Size, image_size: int) -> int:
        """Number of views of an image: its tiles and thumbnail. Arguments as in `grid`."""
        columns, rows = self.grid(size, image_size)
        return self._with_thumbnail(columns * rows)

    def layouts(self, sizes: Sequence[Size], image_size: int, tokens_per_view: int) -> list[ImageLayout]:
        """Layouts of the images of one conversation. Arguments as in `TowerSpec.layouts`."""
        return [views_only(self.views(size, image_size), tokens_per_view) for size in sizes]

    @property
    def fewest_views(self) -> int:
        """Smallest number of views that an image can have."""
        return self._with_thumbnail(self.min_tiles)

    def _with_thumbnail(self, tiles: int) -> int:
        return tiles + (self.thumbnail and tiles > 1)


@lru_cache(maxsize=32)
def _grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """All (columns, rows) with that many tiles, fewest tiles first."""
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if min_tiles <= columns * rows <= max_tiles]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
