"""Thin strips: what is made is bounded, and equal to what Pillow makes of the whole, to the bit."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmchat.vision.transforms import cutting, preprocess, strips
from mmchat.vision.transforms.cutting import pad_to_square
from mmchat.vision.transforms.preprocess import vertical_pass_first

COLOUR = (123, 116, 103)
FILTERS = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
SIZES = st.one_of(
    st.tuples(st.integers(1, 30), st.integers(100, 900)),
    st.tuples(st.integers(100, 900), st.integers(1, 30)),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
)


def noise(size):
    draw = np.random.default_rng(size[0] * 1000 + size[1])
    return Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@settings(deadline=None, max_examples=60)
@given(size=SIZES, side=st.sampled_from([16, 24, 33]), resample=st.sampled_from(FILTERS))
def test_padding_equals_pillows(size, side, resample):
    image = noise(size)
    expected = pad_to_square(image, COLOUR).resize((side, side), resample)
    assert np.array_equal(strips.pad_and_resize(image, COLOUR, side, resample), expected)


@settings(deadline=None, max_examples=60)
@given(size=SIZES, side=st.sampled_from([16, 24, 33]), more=st.sampled_from([0, 5]), resample=st.sampled_from(FILTERS))
def test_cropping_equals_pillows(size, side, more, resample):
    image = noise(size)
    edge = side + more
    long = min(int(edge * max(size) / min(size)), 40_000)
    scaled = (edge, long) if size[0] <= size[1] else (long, edge)
    left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
    expected = image.resize(scaled, resample).crop((left, top, left + side, top + side))
    found = strips.resize_and_crop_strip(image, scaled, side, resample, vertical_pass_first(size, scaled))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "size", [(1, 3000), (3000, 1), (7, 9001), (9001, 7), (1, 20_000), (100, 20_000), (20_000, 100)]
)
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_what_is_made_is_bounded(monkeypatch, size, fit):
    made = []
    of_new, of_resize = Image.new, Image.Image.resize

    def new(mode, size, *arguments):
        made.append(size[0] * size[1])
        return of_new(mode, size, *arguments)

    def resize(self, size, *arguments, **options):
        made.append(size[0] * size[1])
        return of_resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image, "new", new)
    monkeypatch.setattr(Image.Image, "resize", resize)
    image = noise(size)
    tracemalloc.start()
    if fit == "pad":
        square = cutting.padded_square(image, COLOUR, 224, Image.Resampling.BICUBIC)
    else:
        long = int(224 * max(size) / min(size))
        scaled = (224, long) if size[0] <= size[1] else (long, 224)
        square = preprocess.resize_and_crop(image, scaled, 224, Image.Resampling.BICUBIC)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert square.size == (224, 224)
    assert max(made) <= strips.LARGEST_PIXELS and peak < 100_000_000  # NumPy's memory; Pillow's is not traced
