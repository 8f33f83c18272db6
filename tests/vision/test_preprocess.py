"""Preprocessing gives the very bits of the original programs."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from mmchat.errors import UserError
from mmchat.images import load_image
from mmchat.vision import TowerSpec, normalise, preprocess
from mmchat.vision.checkpoint_formats.sam import PREPROCESSING as SAM
from mmchat.vision.checkpoint_formats.vary import PREPROCESSING as VARY
from mmchat.vision.spec import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from mmchat.vision.transforms.preprocess import PILLOW_13, vertical_pass_first

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
    difference = np.abs(seen(image, 56, **HOW[how]) - expected).max()
    # The originals ran with Pillow 12. Pillow 13 resizes this image in another order, and each pass rounds to bytes.
    reordered = PILLOW_13 and (how, name) == ("siglip", "tall")
    assert difference <= (1 / 255 / min(HALF) * 1.001 if reordered else 0)


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


@settings(max_examples=40, deadline=None)
@given(
    width=sides,
    height=st.one_of(sides, st.integers(500, 2000)),  # Pillow shrinks strips in another order
    size=st.sampled_from([14, 28, 56]),
    edge=st.integers(56, 80),
    seed=st.integers(0, 2**32 - 1),
)
def test_bit_equal_where_less_than_the_short_side_is_kept(width, height, size, edge, seed):
    """DINOv2 resizes to 256 and crops 224."""
    width = min(width, 12) if height >= 500 else width
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    theirs = BitImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": size, "width": size})
    expected = theirs(image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(seen(image, size, crop_fraction=size / edge), expected)


@pytest.mark.parametrize("shape", [(90, 61), (20, 33), (56, 56)])
def test_dinov3_up_to_rounding(shape):
    """It resizes floats where Pillow rounds to bytes, once across and once down; so by a byte at most."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    floats = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    resized = torch.nn.functional.interpolate(floats, (56, 56), mode="bilinear", antialias=True)[0]
    expected = (resized - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    how = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "resample": "bilinear", "fit": "squash"}
    difference = torch.from_numpy(seen(Image.fromarray(pixels), 56, **how)) - expected
    assert difference.abs().max() < 1 / 255 / min(IMAGENET_STD)


@pytest.mark.parametrize("side", [13, 32, 90])
def test_siglip2_sees_a_square_image_as_transformers_does(side):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    patches = Siglip2ImageProcessorPil(patch_size=14, max_num_patches=9)(image, return_tensors="np")["pixel_values"][0]
    expected = patches.reshape(3, 3, 14, 14, 3).transpose(4, 0, 2, 1, 3).reshape(3, 42, 42)
    assert np.array_equal(seen(image, 42, mean=HALF, std=HALF, resample="bilinear", fit="squash"), expected)


@settings(max_examples=25, deadline=None)
@given(width=sides, height=sides, size=st.sampled_from([16, 48]), seed=st.integers(0, 2**32 - 1))
def test_sam_bit_equal_to_transformers_where_that_can(width, height, size, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    spec = TowerSpec(size, 16, (size // 16) ** 2, 8, SAM)
    turned = image.rotate(90, expand=True)
    mine = normalise([preprocess(one, spec)[0] for one in (image, turned)], spec)
    assert mine.shape == (2, 3, size, size)
    if 2 * size * min(width, height) < max(width, height):  # less than half a pixel: transformers makes none
        assert not mine[0, :, 1:, 1:].any()
        return
    theirs = SamImageProcessorPil(size={"longest_edge": size}, pad_size={"height": size, "width": size})
    assert np.array_equal(mine, theirs([image, turned], return_tensors="np")["pixel_values"])


@pytest.mark.parametrize("name", ["tall", "tiny"])
def test_vary_is_near_the_original(data_dir, name):
    """Every 16th pixel of 1024; the original resizes with OpenCV, which rounds otherwise: by one of 255 here."""
    expected = load_file(data_dir / "image_processors" / "vary1024_every16.safetensors")[name]
    spec = TowerSpec(1024, 64, 256, 8, VARY)
    mine = normalise(preprocess(load_image(data_dir / "image_processors" / f"{name}.png"), spec), spec)[0]
    assert np.abs(mine[:, ::16, ::16] - expected).max() < 0.02


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(sides, st.one_of(sides, st.integers(500, 2000))),
    st.tuples(sides, sides),
    st.sampled_from([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]),
)
@example((8, 1000), (4, 60), Image.Resampling.BICUBIC)
@example((60, 50), (90, 40), Image.Resampling.BICUBIC)
def test_the_order_in_which_pillow_resizes(size, resized, resample):
    (width, _), (to_width, to_height) = size, resized
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    between = (width, to_height) if vertical_pass_first(size, resized) else (to_width, size[1])
    in_two_passes = image.resize(between, resample).resize(resized, resample)
    assert np.array_equal(image.resize(resized, resample), in_two_passes)


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
def test_cropped_pixels_are_not_computed(monkeypatch, width, height, size, span):
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


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="fit 'crop' is unknown; expected one of squash, pad"):
        Preprocessing(fit="crop")
    with pytest.raises(UserError, match="resample 'nearest' is unknown; expected one of bilinear, bicubic"):
        Preprocessing(resample="nearest")
    with pytest.raises(UserError, match=r"crop_fraction is 1\.5; expected 0.0625 to 1"):
        Preprocessing(crop_fraction=1.5)
