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
    return normalise(preprocess(image, spec)[None], spec)[0]


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


def test_pad_centres_on_the_mean_colour():
    image = Image.new("RGB", (4, 2), (0, 0, 0))
    spec = TowerSpec(4, 2, 4, 8, Preprocessing(mean=(0.2, 0.4, 0.6), fit="pad"))
    pixels = preprocess(image, spec).transpose(1, 2, 0)
    assert (pixels[[0, 3]] == (51, 102, 153)).all()
    assert (pixels[[1, 2]] == 0).all()


def test_unknown_words_are_refused():
    with pytest.raises(UserError, match="fit 'crop' is unknown; expected one of squash, pad"):
        Preprocessing(fit="crop")
    with pytest.raises(UserError, match="resample 'nearest' is unknown; expected one of bilinear, bicubic"):
        Preprocessing(resample="nearest")
