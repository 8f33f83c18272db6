"""Dynamic tiles: the grid of OpenGVLab's `dynamic_preprocess`, and its pixels as transformers makes them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from mmchat.errors import UserError
from mmchat.vision import Tiling, TowerConfig, TowerSpec, normalise, preprocess, refuse_unequal_views, with_fit
from mmchat.vision.spec import Preprocessing

SIZE = 14
sides = st.integers(1, 120)


def tiled(size=SIZE, **tiling):
    return TowerSpec(size, 7, 4, 8, Preprocessing(fit="tiles", tiling=Tiling(**tiling)))


def slow_grid(width, height, fewest, most, size):
    """The rule, said in another way: of all grids at the least distance, the first, or the last large one after it."""
    pairs = {(i, j) for n in range(fewest, most + 1) for i in range(1, n + 1) for j in range(1, n + 1)}
    grids = sorted((pair for pair in pairs if fewest <= pair[0] * pair[1] <= most), key=lambda pair: pair[0] * pair[1])
    distances = [abs(width / height - columns / rows) for columns, rows in grids]
    first, *others = (grid for grid, distance in zip(grids, distances, strict=True) if distance == min(distances))
    filled = [grid for grid in others if width * height > 0.5 * size * size * grid[0] * grid[1]]
    return filled[-1] if filled else first


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 5000), height=st.integers(1, 5000), most=st.integers(1, 40), size=st.sampled_from([28, 448])
)
def test_the_grid_is_the_originals(width, height, most, size):
    assert Tiling(max_tiles=most).grid((width, height), size) == slow_grid(width, height, 1, most, size)


@pytest.mark.parametrize(
    ("width", "height", "grid", "views"),
    [
        (448, 448, (1, 1), 1),
        (1000, 1000, (3, 3), 10),  # 2x2 and 3x3 are as square: taken as far as the image has half their pixels
        (700, 700, (2, 2), 5),
        (633, 633, (1, 1), 1),  # a pixel under half of 2x2
        (634, 634, (2, 2), 5),
        (640, 480, (4, 3), 13),  # whatever its size: no other grid is 4:3
        (1344, 448, (3, 1), 4),
        (10000, 1, (12, 1), 13),
        (1, 10000, (1, 12), 13),
        (1, 1, (1, 1), 1),
    ],
)
def test_grids_at_448(width, height, grid, views):
    assert Tiling().grid((width, height), 448) == grid
    assert Tiling().views((width, height), 448) == views
    assert Tiling(thumbnail=False).views((width, height), 448) == grid[0] * grid[1]


@settings(max_examples=40, deadline=None)
@given(width=sides, height=sides, fewest=st.integers(1, 3), more=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_bit_equal_to_transformers(width, height, fewest, more, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    most = fewest + more
    theirs = GotOcr2ImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, crop_to_patches=True, min_patches=fewest, max_patches=most
    )
    expected = np.stack(theirs(image, return_tensors="np")["pixel_values"])
    spec = tiled(min_tiles=fewest, max_tiles=most)
    views = preprocess(image, spec)
    assert spec.views(image.size) == len(views) == len(expected)
    assert np.array_equal(normalise(views, spec), expected)
    without = preprocess(image, tiled(min_tiles=fewest, max_tiles=most, thumbnail=False))
    assert np.array_equal(without, views[:-1] if len(views) > 1 else views)


def test_tiles_in_reading_order_and_then_the_whole():
    """Six colours, three in a row, each a tile; the thumbnail has all of them."""
    colours = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    image = Image.fromarray(np.repeat(np.kron(colours, np.ones((SIZE, SIZE), np.uint8))[..., None], 3, axis=2))
    *tiles, thumbnail = preprocess(image, tiled())
    assert [set(tile.ravel().tolist()) for tile in tiles] == [{shade} for shade in range(0, 240, 40)]
    assert thumbnail.shape == (3, SIZE, SIZE) and len(set(thumbnail.ravel().tolist())) > 6


def test_the_fewest_and_the_most_views_are_reached():
    for tiling in (Tiling(), Tiling(2, 5), Tiling(1, 6, thumbnail=False), Tiling(3, 3)):
        counts = {tiling.views((width, height), 8) for width in range(1, 60) for height in (7, 19)}
        most = tiling.max_tiles + (tiling.thumbnail and tiling.max_tiles > 1)
        assert (min(counts), max(counts)) == (tiling.fewest_views, most)


def test_what_contradicts_itself_is_refused():
    for fewest, most in ((0, 3), (4, 3)):
        with pytest.raises(UserError, match=f"found min_tiles {fewest} and max_tiles {most}"):
            Tiling(fewest, most)
    with pytest.raises(UserError, match="has a tiling, but its fit is 'pad'"):
        Preprocessing(fit="pad", tiling=Tiling())


def test_a_tiling_goes_through_json_and_another_fit():
    spec = tiled(max_tiles=6)
    assert TowerSpec.from_dict(spec.to_dict()) == spec
    config = TowerConfig("any", {}, preprocessing=spec.preprocessing)
    assert TowerConfig.from_dict(config.to_dict()) == config == with_fit(config, "tiles")
    padded = with_fit(config, "pad")
    assert padded == TowerConfig("any", {}, preprocessing=replace(spec.preprocessing, fit="pad", tiling=None))
    assert with_fit(padded, "tiles").preprocessing.tiling == Tiling()


def test_towers_that_see_other_views_are_refused():
    refuse_unequal_views([tiled(), tiled()])
    refuse_unequal_views([TowerSpec(14, 7, 4, 8), TowerSpec(28, 7, 16, 8, Preprocessing(fit="pad"))])
    for other in (tiled(max_tiles=6), tiled(size=28), TowerSpec(14, 7, 4, 8)):
        with pytest.raises(UserError, match="all towers must see the same tiles"):
            refuse_unequal_views([tiled(), other])
