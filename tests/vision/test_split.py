"""Fit split against Idefics3 in transformers, and against nanoVLM's functions as published."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from mmchat.errors import UserError
from mmchat.vision import NANOVLM_MARKERS, Split, TowerSpec, normalise, preprocess
from mmchat.vision.spec import HALF, Preprocessing

TILE, SLOTS = 28, 4
ASPECTS = ((90, 90), (300, 40), (35, 200), (64, 48), (100, 133), (5, 5))
NANOVLM = Split(112, "nanovlm", False, "first", "bilinear", NANOVLM_MARKERS)
sizes = st.tuples(st.integers(1, 400), st.integers(1, 400))


def spec_of(split, mean=HALF, std=HALF, resample="lanczos"):
    preprocessing = Preprocessing(mean, std, resample, fit="split", tiling=split)
    return TowerSpec(TILE, 7, 16, 5, preprocessing)


def written(layout, slot="<image>"):
    """The text of an expansion."""
    return "".join(part if isinstance(part, str) else slot * part for part in layout.expansion)


def idefics3(longest_edge=4 * TILE):
    return Idefics3ImageProcessorPil(
        size={"longest_edge": longest_edge}, max_image_size={"longest_edge": TILE}, return_row_col_info=True
    )


@pytest.mark.parametrize("size", ASPECTS)
def test_an_image_that_is_not_cut_is_idefics3s(size, make_image):
    split = Split(cut=False)
    spec, image = spec_of(split), make_image(2, *size)
    theirs = idefics3()([image], do_image_splitting=False, return_tensors="np")
    assert np.array_equal(normalise(preprocess(image, spec), spec), theirs["pixel_values"][0])
    (layout,) = spec.layouts([size], SLOTS)
    assert (layout.views, theirs["rows"][0][0], written(layout)) == (1, 0, idefics3_text(0, 0))
    assert split.marker_tokens(TILE) == ["<fake_token_around_image>", "<global-img>", "<row_1_col_1>"]


def idefics3_text(rows, columns):
    processor = SimpleNamespace(
        fake_image_token="<fake_token_around_image>",
        global_image_tag="<global-img>",
        image_token="<image>",
        image_seq_len=SLOTS,
    )
    return Idefics3Processor.replace_image_token(processor, {"rows": [[rows]], "cols": [[columns]]}, 0)


@pytest.mark.parametrize("longest_edge", [None, 100, TILE, 20])
@pytest.mark.parametrize("size", ASPECTS)
def test_views_and_text_are_idefics3s(size, longest_edge, make_image):
    split = Split(longest_edge)
    spec, image = spec_of(split), make_image(2, *size)
    theirs = idefics3(longest_edge or 4 * TILE)([image], return_tensors="np")
    expected = theirs["pixel_values"][0]
    assert np.array_equal(normalise(preprocess(image, spec), spec), expected)
    (layout,) = spec.layouts([size], SLOTS)
    assert layout.views == len(expected) == spec.views(size) and layout.slots == SLOTS * layout.views
    assert written(layout) == idefics3_text(theirs["rows"][0][0], theirs["cols"][0][0])


@settings(max_examples=100, deadline=None)
@given(size=sizes)
@example(size=(1, 400))
@example(size=(400, 1))
def test_sizes_are_idefics3s(size):
    seen = np.zeros((3, size[1], size[0]), np.uint8)
    processor, shapes = idefics3(), []
    processor.resize = lambda image, size, resample=None: shapes.append(_target(image, size)) or np.zeros(shapes[-1])
    first = processor.resize(seen, SimpleNamespace(longest_edge=4 * TILE, height=None, width=None))
    processor.resize_for_vision_encoder(first, TILE)
    assert Split().sizes(size, TILE) == [(width, height) for _, height, width in shapes]


def _target(image, size):
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    height, width = (
        get_resize_output_image_size(image, size.longest_edge)
        if size.longest_edge
        else (
            size.height,
            size.width,
        )
    )
    return 3, height, width


def nanovlm_size(height, width, tile, longest, enlarge):
    """Target height and width (huggingface/nanoVLM, data/custom_transforms.py: the longer side is rounded up to a
    multiple, at most `longest`; the shorter one keeps the scale and is rounded up)."""
    wide = width >= height
    long, short = (width, height) if wide else (height, width)
    to_long = longest if enlarge else min(longest, math.ceil(long / tile) * tile)
    to_short = max(math.ceil(short * (to_long / long) / tile) * tile, tile)
    return (to_short, to_long) if wide else (to_long, to_short)


def nanovlm_text(grids):
    """The text of all images of a conversation (huggingface/nanoVLM, data/processors.py)."""
    text = ""
    for number, (rows, columns) in enumerate(grids):
        text += f"<image: {number}>" * (len(grids) > 1) + "<|global_image|>" + "<image>" * SLOTS
        if (rows, columns) != (1, 1):
            places = [(row, column) for row in range(1, rows + 1) for column in range(1, columns + 1)]
            text += "".join(f"<row_{row}_col_{column}>" + "<image>" * SLOTS for row, column in places)
    return text


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(sizes, min_size=1, max_size=3), enlarge=st.booleans())
def test_sizes_and_text_are_nanovlms(sizes, enlarge):
    spec = spec_of(Split(112, "nanovlm", enlarge, "first", "bilinear", NANOVLM_MARKERS))
    targets = [nanovlm_size(height, width, TILE, 112, enlarge) for width, height in sizes]
    grids = [(height // TILE, width // TILE) for height, width in targets]
    layouts = spec.layouts(sizes, SLOTS)
    assert "".join(map(written, layouts)) == nanovlm_text(grids)
    assert [layout.views for layout in layouts] == [rows * columns + (rows * columns > 1) for rows, columns in grids]


def test_nanovlms_views(make_image):
    """The whole image first, then the tiles; both of the image resized once."""
    spec = spec_of(NANOVLM, (0, 0, 0), (1, 1, 1), "bicubic")
    image = make_image(3, 90, 40)
    resized = image.resize((112, 56), 3)
    whole, *tiles = preprocess(image, spec)
    assert np.array_equal(whole.transpose(1, 2, 0), resized.resize((TILE, TILE), 2))
    expected = np.asarray(resized).reshape(2, TILE, 4, TILE, 3).transpose(0, 2, 4, 1, 3).reshape(8, 3, TILE, TILE)
    assert np.array_equal(tiles, expected)
    (small,) = preprocess(make_image(3, 9, 9), spec)
    assert np.array_equal(small.transpose(1, 2, 0), make_image(3, 9, 9).resize((TILE, TILE), 3))


def test_without_a_global_view(make_image):
    spec = spec_of(Split(2 * TILE, global_view="none", markers=NANOVLM_MARKERS))
    layouts = [spec.layouts([size], 1)[0] for size in ((60, 60), (60, 20))]
    assert written(layouts[1], ".") == "<row_1_col_1>.<row_1_col_2>."
    assert (
        [layout.views for layout in layouts]
        == [4, 2]
        == [len(preprocess(make_image(0, 60, y), spec)) for y in (60, 20)]
    )


def test_marker_tokens():
    assert Split(2 * TILE).marker_tokens(TILE) == [
        "<fake_token_around_image>",
        "<global-img>",
        "<row_1_col_1>",
        "<row_1_col_2>",
        "<row_2_col_1>",
        "<row_2_col_2>",
    ]
    assert len(Split().marker_tokens(TILE)) == 18
    assert NANOVLM.marker_tokens(TILE)[:2] == ["<|global_image|>", "<row_1_col_1>"]


def test_settings_that_cannot_be():
    for values, message in (
        ({"longest_edge": 0}, "longest_edge is 0; expected a whole number from 1"),
        ({"rule": "other"}, "rule is 'other'; expected one of idefics3, nanovlm"),
        ({"global_view": "middle"}, "global_view is 'middle'; expected one of first, last, none"),
        ({"rule": "nanovlm", "cut": False}, "cut false belongs to rule 'idefics3'"),
        ({"enlarge": False}, "enlarge false belongs to rule 'nanovlm'"),
    ):
        with pytest.raises(UserError, match=message):
            Split(**values)
    with pytest.raises(UserError, match="longest_edge 100 is not a multiple of the tile's 28 pixels"):
        Split(100, "nanovlm").views((30, 30), TILE)
    assert TowerSpec.from_dict(spec_of(NANOVLM).to_dict()) == spec_of(NANOVLM)
