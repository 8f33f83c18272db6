"""Bands contain every line of a page uncut, in order and once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmchat.inference.page_splitting import split_into_bands

PAPER, WIDTH = 230, 40


def page_of(lines, width=WIDTH, paper=PAPER):
    """A page of (gap, height) lines. The ink of each line has its own gray value."""
    rows = []
    for number, (gap, height) in enumerate(lines):
        rows += [np.full((gap, width), paper), np.full((height, width), paper)]
        rows[-1][:, 5:30] = number
    rows.append(np.full((5, width), paper))
    return Image.fromarray(np.concatenate(rows).astype(np.uint8)).convert("RGB")


def lines_in(band):
    """(gray value, rows) of the lines in an image, from top to bottom."""
    column = np.asarray(band.convert("L"))[:, 10]
    shades = [shade for shade in dict.fromkeys(column.tolist()) if shade != PAPER]
    return [(shade, int((column == shade).sum())) for shade in shades]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 12)), min_size=1, max_size=60))
def test_no_line_is_cut_lost_or_doubled(lines):
    page = page_of(lines)
    bands = split_into_bands(page, tower_size=20)
    assert [line for band in bands for line in lines_in(band)] == [(n, height) for n, (_, height) in enumerate(lines)]
    if page.height > page.width:
        assert all(band.size == (WIDTH, WIDTH) for band in bands)


def test_the_widest_gap_of_the_lower_half_is_taken():
    # Rows 3-12, 16-25, 32-35, 37-...: gaps around 13, 26 and 36; the lower half begins at 20.
    page = page_of([(3, 10), (3, 10), (6, 4), (1, 30), (1, 30)])
    first = split_into_bands(page, tower_size=20)[0]
    assert lines_in(first) == [(0, 10), (1, 10)]


def test_text_without_a_gap_gives_a_tall_band():
    bands = split_into_bands(page_of([(2, 10), (3, 90), (3, 10)]), tower_size=20)
    assert [lines_in(band) for band in bands] == [[(0, 10)], [(1, 90)], [(2, 10)]]
    assert bands[1].height > 90
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 40, 3), dtype=np.uint8))
    assert [band.size for band in split_into_bands(noise, tower_size=20)] == [(40, 200)]


@pytest.mark.parametrize(("size", "tower"), [((60, 40), 20), ((40, 40), 20), ((40, 60), 64)])
def test_a_page_within_the_tower_size_is_not_split(size, tower):
    page = Image.new("RGB", size, "white")
    assert split_into_bands(page, tower) == [page]


def test_a_blank_page_stays_a_page():
    page = Image.new("RGB", (40, 200), "white")
    assert split_into_bands(page, tower_size=20) == [page]


def test_a_low_band_is_padded_with_paper():
    page = page_of([(2, 30), (8, 6)])
    last = np.asarray(split_into_bands(page, tower_size=20)[-1])
    assert last.shape == (WIDTH, WIDTH, 3)
    assert (last[-20:] == PAPER).all()
