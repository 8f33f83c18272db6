"""Preprocessing gives the very bits of the original programs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmchat.errors import UserError
from mmchat.images import load_image
from mmchat.vision import TowerSpec, normalise, preprocess
from mmchat.vision.spec import Preprocessing

HALF = (0.5, 0.5, 0.5)
SIGLIP = {"mean": HALF, "std": HALF, "fit": "squash"}
HOW = {"clip": {"fit": "shortest-edge-crop"}, "pad": {"fit": "pad"}, "siglip": SIGLIP}


def seen(image, size, **how):
    spec = TowerSpec(size, 14, (size // 14) ** 2, 8, Preprocessing(**how))
    return normalise(preprocess(image, spec), spec)[0]


@pytest.mark.parametrize("name", ["gray", "square", "tall", "tiny", "wide"])
@pytest.mark.parametrize("how", HOW)
def test_bit_equal_to_the_originals(data_dir, how, name):
    expected = load_file(data_dir / "image_processors" / "expected.safetensors")[f"{how}.{name}"]
    image = load_image(data_dir / "image_processors" / f"{name}.png")
    assert np.array_equal(seen(image, 56, **HOW[how]), expected)


sides = st.integers(1, 90)


@settings(max_examples=25, deadline=None)
@given(width=sides, height=sides, size=st.sampled_from([14, 28, 56]), seed=st.integers(0, 2**32 - 1))
def test_bit_equal_to_transformers_on_any_shape(width, height, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    clip = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    siglip = SiglipImageProcessorPil(size={"height": size, "width": size})
    for theirs, resample, how in (
        (clip, "bicubic", {"fit": "shortest-edge-crop"}),
        (siglip, {2: "bilinear", 3: "bicubic"}[int(siglip.resample)], SIGLIP),
    ):
        expected = theirs(image, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(seen(image, size, resample=resample, **how), expected)


@pytest.mark.parametrize(
    ("width", "height", "size", "span"),
    [
        (96, 64, 28, (7, 35)),  # 42 wide: a multiple of 7 is a whole pixel of the original
        (64, 96, 28, (7, 35)),
        (120, 64, 28, (0, 52)),  # 52 wide, and 13 of them are 30 pixels: cut on neither side
        (360, 48, 14, (42, 63)),  # 105 wide, and 7 of them are 24 pixels: cut as far as that goes
        (8, 816, 14, (0, 1428)),  # a strip that Pillow resizes in another order when it shrinks
    ],
)
def test_what_is_cropped_away_is_not_computed(monkeypatch, width, height, size, span):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    long = int(size * max(width, height) / min(width, height))
    whole = image.resize((size, long) if width <= height else (long, size), Image.Resampling.BICUBIC)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    made = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *words, **how: made.append(words[1]) or resize(*words, **how))
    cut = preprocess(image, TowerSpec(size, 14, 1, 8))[0].transpose(1, 2, 0)
    assert np.array_equal(cut, np.asarray(whole)[top : top + size, left : left + size])
    assert made == [(size, span[1] - span[0]) if width <= height else (span[1] - span[0], size)]


def test_pad_centres_on_the_mean_colour():
    image = Image.new("RGB", (4, 2), (0, 0, 0))
    spec = TowerSpec(4, 2, 4, 8, Preprocessing(mean=(0.2, 0.4, 0.6), fit="pad"))
    pixels = preprocess(image, spec)[0].transpose(1, 2, 0)
    assert (pixels[[0, 3]] == (51, 102, 153)).all()
    assert (pixels[[1, 2]] == 0).all()


def test_unknown_words_are_refused():
    with pytest.raises(UserError, match="fit 'crop' is unknown; expected one of squash, pad"):
        Preprocessing(fit="crop")
    with pytest.raises(UserError, match="resample 'nearest' is unknown; expected one of bilinear, bicubic"):
        Preprocessing(resample="nearest")
