"""Split a page that is larger than the tower's input into bands, between its lines of text."""

import numpy as np
from PIL import Image

MAX_CONTRAST = 24
"""A row is empty if its gray values, of 256, differ by at most this: paper with JPEG noise and no ink."""


def split_into_bands(page: Image.Image, tower_size: int) -> list[Image.Image]:
    """Split a page from top to bottom into squares as wide as the page, without cutting a line of text.

    A band ends in the widest gap (empty rows) in its lower half, else in the lowest gap in its upper half. If there is
    none (a photograph, a tilted scan, a frame around the page) it ends in the next gap below and is taller than wide. A
    band that is wider than tall is padded with the paper colour.

    Args:
        page: An RGB image.
        tower_size: Side of the tower's input in pixels. A page that is not taller than this, or not taller than
            wide, is not split.

    Returns:
        The bands, or the page itself. Empty bands are left out.
    """
    width, height = page.size
    if height <= max(width, tower_size):
        return [page]
    empty = np.ptp(np.asarray(page.convert("L")), axis=1) <= MAX_CONTRAST
    gaps = _gaps(empty)
    bands, top = [], 0
    while top < height:
        bottom = height if height - top <= width else _band_end(gaps, top, width, height)
        if not empty[top:bottom].all():
            bands.append(_pad_to_square(page.crop((0, top, width, bottom)), empty[top:bottom]))
        top = bottom
    return bands or [page]


def _gaps(empty: np.ndarray) -> list[tuple[int, int]]:
    """(length, middle) of every run of empty rows, from top to bottom."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], empty, [False]])))
    return [(int(end - start), int(start + end) // 2) for start, end in edges.reshape(-1, 2)]


def _band_end(gaps: list[tuple[int, int]], top: int, width: int, height: int) -> int:
    """The row where a band that starts at `top` ends (exclusive)."""
    within = [gap for gap in gaps if top < gap[1] <= top + width]
    lower = [gap for gap in within if gap[1] > top + width // 2]
    if lower:
        return max(lower)[1]
    if within:
        return within[-1][1]
    return next((middle for _, middle in gaps if middle > top), height)


def _pad_to_square(band: Image.Image, empty: np.ndarray) -> Image.Image:
    """Pad a band at the bottom with the colour of its empty rows."""
    width, height = band.size
    if height >= width:
        return band
    rows = np.asarray(band)
    paper = np.median(rows[empty] if empty.any() else rows, axis=(0, 1))
    square = Image.new("RGB", (width, width), tuple(int(value) for value in paper))
    square.paste(band)
    return square
