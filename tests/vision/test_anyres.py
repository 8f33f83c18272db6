"""Fit anyres against LLaVA-NeXT and LLaVA-OneVision in transformers: views, slots, and which features fill them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from mmchat.errors import UserError
from mmchat.vision import LLAVA_ONEVISION, AnyRes, TowerSpec, normalise, preprocess
from mmchat.vision.spec import CLIP_MEAN, CLIP_STD, HALF, Preprocessing

SIDE, PATCH, WIDTH = 28, 7, 5
"""Pixels of a square and of a patch, width of a feature: 4 x 4 features a square."""
ASPECTS = ((90, 90), (300, 40), (35, 200), (64, 48), (100, 133))
KINDS = {"next": AnyRes(), "onevision": LLAVA_ONEVISION, "onevision_small": AnyRes(LLAVA_ONEVISION.grids, 2, True)}
sizes = st.tuples(st.integers(1, 400), st.integers(1, 400))


def spec_of(anyres, mean=CLIP_MEAN, std=CLIP_STD):
    preprocessing = Preprocessing(mean, std, fit="anyres", tiling=anyres)
    return TowerSpec(SIDE, PATCH, (SIDE // PATCH) ** 2, WIDTH, preprocessing)


def pinpoints(anyres):
    return [[rows * SIDE, columns * SIDE] for rows, columns in anyres.grids]


def their_packing(anyres, size, features, newline):
    """Features of an image as the class packs them: float[slots, WIDTH]."""
    vision = SimpleNamespace(image_size=SIDE, patch_size=PATCH)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints(anyres)))
    sizes = torch.tensor([size[::-1]])
    if anyres.max_tiles is None:
        packed, lengths = LlavaNextModel.pack_image_features(model, [features], sizes, "default", newline)
    else:
        limit = f"anyres_max_{anyres.max_tiles}"
        packed, lengths = LlavaOnevisionModel.pack_image_features(model, [features], sizes, newline, limit)
    assert lengths.tolist() == [len(packed[0])]
    return packed[0]


def their_slots(anyres, size):
    """Slots of an image as the processor counts them."""
    side = SIDE // PATCH
    image_processor = SimpleNamespace(image_grid_pinpoints=pinpoints(anyres))
    if anyres.max_tiles is None:
        processor = SimpleNamespace(image_processor=image_processor, patch_size=PATCH, num_additional_image_tokens=0)
        kind = LlavaNextProcessor
    else:
        limit = f"anyres_max_{anyres.max_tiles}"
        processor = SimpleNamespace(
            image_processor=image_processor, num_image_tokens=side**2, vision_aspect_ratio=limit
        )
        kind = LlavaOnevisionProcessor
    processor._get_unpadded_features = lambda *args: kind._get_unpadded_features(processor, *args)
    return kind._get_number_of_features(processor, size[1], size[0], SIDE, SIDE)


def shown(layout, features, newline):
    """The features that the slots show, computed with NumPy: float[slots, WIDTH]."""
    sources = np.concatenate([features.reshape(-1, WIDTH), newline[None]])
    chosen = sources[layout.slot_map.indices]
    weights = layout.slot_map.weights
    return chosen if weights is None else (chosen * weights[..., None]).sum(1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(size=sizes)
@example(size=(1, 400))
@example(size=(400, 1))
@example(size=(28, 28))
def test_slots_show_what_the_class_packs(kind, size):
    anyres = KINDS[kind]
    spec = spec_of(anyres)
    (layout,) = spec.layouts([size], spec.tokens)
    draw = np.random.default_rng(0)
    features = draw.normal(size=(layout.views, spec.tokens, WIDTH)).astype(np.float32)
    newline = draw.normal(size=WIDTH).astype(np.float32)
    expected = their_packing(anyres, size, torch.from_numpy(features), torch.from_numpy(newline)).numpy()
    assert layout.slots == len(layout.slot_map) == len(expected) == their_slots(anyres, size)
    assert layout.expansion == (layout.slots,) and layout.views == spec.views(size)
    found = shown(layout, features, newline)
    if layout.slot_map.weights is None:
        assert np.array_equal(found, expected)
    else:
        # torch and NumPy round positions of up to 96 features in float32 in another order.
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_some_images_are_interpolated_and_some_are_not():
    small = spec_of(KINDS["onevision_small"])
    weighted = [
        small.layouts([size], small.tokens)[0].slot_map.weights is not None for size in (*ASPECTS, (SIDE, SIDE))
    ]
    assert any(weighted) and not all(weighted)


@pytest.mark.parametrize("size", ASPECTS)
@pytest.mark.parametrize("kind", ["next", "onevision"])
def test_views_are_those_of_the_image_processors(kind, size, make_image):
    anyres = KINDS[kind]
    if kind == "next":
        how = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
        processor, spec = LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints(anyres), **how), spec_of(anyres)
    else:
        how = {"size": {"height": SIDE, "width": SIDE}, "image_mean": HALF, "image_std": HALF}
        processor = LlavaOnevisionImageProcessorPil(image_grid_pinpoints=pinpoints(anyres), **how)
        spec = spec_of(anyres, HALF, HALF)
    image = make_image(1, *size)
    expected = processor([image], return_tensors="np")["pixel_values"][0]
    assert np.array_equal(normalise(preprocess(image, spec), spec), expected)


def test_several_images_are_padded_squares_for_onevision(make_image):
    spec = spec_of(LLAVA_ONEVISION, HALF, HALF)
    images = [make_image(number, *size) for number, size in enumerate(ASPECTS[:3])]
    how = {"size": {"height": SIDE, "width": SIDE}, "image_mean": HALF, "image_std": HALF}
    processor = LlavaOnevisionImageProcessorPil(image_grid_pinpoints=pinpoints(LLAVA_ONEVISION), **how)
    expected = processor([images], return_tensors="np")["pixel_values"][:, 0]
    found = np.concatenate([normalise(preprocess(image, spec, several=True), spec) for image in images])
    assert np.array_equal(found, expected)
    layouts = spec.layouts([image.size for image in images], spec.tokens)
    assert [(layout.views, layout.slots) for layout in layouts] == [(1, spec.tokens + 1)] * 3
    features, newline = np.random.default_rng(0).normal(size=(1, spec.tokens, WIDTH)), np.ones(WIDTH)
    packed = their_packing(LLAVA_ONEVISION, (9, 9), torch.from_numpy(features), torch.from_numpy(newline))
    assert np.array_equal(shown(layouts[0], features, newline), packed.numpy())
    alone = spec_of(KINDS["next"]).layouts([image.size for image in images], spec.tokens)
    assert min(layout.views for layout in alone) > 1


def test_settings_that_cannot_be(make_tower):
    with pytest.raises(UserError, match="expected grids of at least 1 row and 1 column, found"):
        AnyRes(((1, 0),))
    with pytest.raises(UserError, match="max_tiles is 0; expected a whole number from 1"):
        AnyRes(max_tiles=0)
    with pytest.raises(UserError, match=r"fit 'anyres' takes a AnyRes, found Tiling"):
        Preprocessing(fit="anyres", tiling=Preprocessing(fit="tiles").tiling)
    assert TowerSpec.from_dict(spec_of(LLAVA_ONEVISION).to_dict()) == spec_of(LLAVA_ONEVISION)
