"""A page that is taller than a tower sees, cut into bands between its lines of text."""

import numpy as np
from PIL import Image

EVEN = 24
"""A row is empty if its shades, of 256, differ by no more: paper with the noise of JPEG, without ink."""


def split_into_bands(page: Image.Image, tower_size: int) -> list[Image.Image]:
    """Squares as wide as the page, from top to bottom, which no line of text is cut by.

    Each ends within the widest gap of its lower half, a gap being rows without ink, else within the lowest of its upper
    half; where there is none (a photograph, a tilted scan, a frame around the page) within the next one below, so
    that it is taller than wide. What is lower than wide is filled up below with paper. A page that is no taller than
    wide, or which the tower sees in full (`tower_size`), stays whole.
    """
    width, height = page.size
    if height <= max(width, tower_size):
        return [page]
    empty = np.ptp(np.asarray(page.convert("L")), axis=1) <= EVEN
    gaps = _gaps(empty)
    bands, top = [], 0
    while top < height:
        bottom = height if height - top <= width else _cut(gaps, top, width, height)
        if not empty[top:bottom].all():
            bands.append(_squared(page.crop((0, top, width, bottom)), empty[top:bottom]))
        top = bottom
    return bands or [page]


def _gaps(empty: np.ndarray) -> list[tuple[int, int]]:
    """(length, middle) of every stretch of empty rows, from top to bottom."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], empty, [False]])))
    return [(int(end - start), int(start + end) // 2) for start, end in edges.reshape(-1, 2)]


def _cut(gaps: list[tuple[int, int]], top: int, width: int, height: int) -> int:
    """The row before which a band from `top` on ends."""
    within = [gap for gap in gaps if top < gap[1] <= top + width]
    lower = [gap for gap in within if gap[1] > top + width // 2]
    if lower:
        return max(lower)[1]
    if within:
        return within[-1][1]
    return next((middle for _, middle in gaps if middle > top), height)


def _squared(band: Image.Image, empty: np.ndarray) -> Image.Image:
    """Filled up with the shade of its empty rows."""
    width, height = band.size
    if height >= width:
        return band
    rows = np.asarray(band)
    paper = np.median(rows[empty] if empty.any() else rows, axis=(0, 1))
    square = Image.new("RGB", (width, width), tuple(int(shade) for shade in paper))
    square.paste(band)
    return square
