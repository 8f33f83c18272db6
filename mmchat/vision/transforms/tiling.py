"""InternVL's dynamic tiles: into which grid an image of some size is cut, and so how many views a tower has of it.

After `dynamic_preprocess` of OpenGVLab/InternVL (arXiv:2404.16821, section 3.2). No torch: planning counts by it.
"""

from dataclasses import dataclass
from functools import lru_cache

from mmchat.errors import UserError

Size = tuple[int, int]
"""Width and height of an image, in pixels."""


@dataclass(frozen=True)
class Tiling:
    """`min_tiles` to `max_tiles` squares and, if there are several and `thumbnail`, the whole image once more."""

    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise UserError(
                f"tiling: expected 1 <= min_tiles <= max_tiles, found min_tiles {self.min_tiles} and max_tiles "
                f"{self.max_tiles}"
            )

    def grid(self, size: Size, image_size: int) -> tuple[int, int]:
        """Columns and rows: of the grids with that many tiles the one nearest in width / height.

        Of equally near ones a larger replaces a smaller where the image has more than half its pixels. (Two of one
        area can be equally near only where `min_tiles` is above 1. The first is kept then that has fewer columns, as in
        transformers' GotOcr2ImageProcessor; the original takes them as a Python set orders them.)
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
        """Tiles of an image, and its thumbnail."""
        columns, rows = self.grid(size, image_size)
        return self._with_thumbnail(columns * rows)

    @property
    def fewest_views(self) -> int:
        return self._with_thumbnail(self.min_tiles)

    def _with_thumbnail(self, tiles: int) -> int:
        return tiles + (self.thumbnail and tiles > 1)


@lru_cache(maxsize=32)
def _grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """(columns, rows) with that many tiles, the fewest first."""
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if min_tiles <= columns * rows <= max_tiles]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
