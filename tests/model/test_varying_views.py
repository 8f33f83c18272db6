"""Assistants whose number of views depends on the image size: tiles and native aspect."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.errors import UserError
from mmchat.inference import Generator
from mmchat.model.directory import load_assistant, load_processor, save_assistant
from mmchat.model.modeling import repeat_rows
from mmchat.model.projectors import slots_per_tower
from mmchat.vision import Tiling
from mmchat.vision.spec import Preprocessing

TILES = Preprocessing(fit="tiles", tiling=Tiling(max_tiles=4))
SIZES = ((60, 28), (28, 28), (30, 95), (57, 56))


@dataclass(frozen=True)
class Case:
    slots: int
    """Slots per view."""
    views: list[int]
    """Views of images of `SIZES`."""
    grids: list[list[int]] | None
    """Rows and columns of patches of images of `SIZES`, for native aspect."""
    comparison_views: int
    """Views of the image in `MMChatProcessor.comparison_inputs`."""


CASES = {
    "tiles": Case(16, [3, 1, 4, 5], None, 3),  # tiles of 28 pixels and a thumbnail
    "native": Case(1, [10, 9, 12, 12], [[2, 5], [3, 3], [6, 2], [3, 4]], 8),  # patches of 7 pixels, at most 12
}


@pytest.fixture(scope="module", params=CASES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def case(kind):
    return CASES[kind]


@pytest.fixture(scope="module")
def assistants(make_assistant, make_tower, native_tower):
    towers = {"tiles": make_tower(layer=-2, preprocessing=TILES), "native": native_tower}
    return {name: make_assistant(towers=[tower]) for name, tower in towers.items()}


@pytest.fixture(scope="module")
def assistant(assistants, kind):
    return assistants[kind]


@pytest.fixture(scope="module")
def generator(assistant, tmp_path_factory):
    directory = tmp_path_factory.mktemp("varying") / "model"
    save_assistant(*assistant, directory)
    return Generator(directory, device="cpu")


@pytest.fixture
def images(make_image):
    return [make_image(seed, *size) for seed, size in enumerate(SIZES)]


def question(images, text="What is this?"):
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def views_of(processor, images):
    return [processor.image_processor.views(image.size) for image in images]


def assert_equal_images(found, expected):
    """The pixel values and grids of two batches are equal."""
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert ("grids" in found) == ("grids" in expected)
    if "grids" in expected:
        assert torch.equal(found["grids"], expected["grids"])


sizes = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(sizes=sizes)
def test_views_pixels_slots_and_features_agree_in_number(assistant, case, make_image, sizes):
    model, processor = assistant
    images = [make_image(seed, *size) for seed, size in enumerate(sizes)]
    views = views_of(processor, images)
    inputs = processor.image_processor(images)
    assert [len(processor.image_processor.pixels(image)[0]) for image in images] == views
    if case.grids:
        assert inputs["grids"].prod(dim=1).tolist() == views and max(views) <= 12
    rendered = processor.render(question(len(images)), views, add_generation_prompt=True)
    assert [stop - start for start, stop in rendered.image_spans] == [case.slots * count for count in views]
    ids = torch.tensor([rendered.input_ids])
    with torch.no_grad():
        features = model.get_image_features(**inputs)
        assert features.shape == (sum(views), case.slots, 32)
        assert torch.isfinite(model(ids, **inputs, logits_to_keep=1).logits).all()
        one_by_one = [model.get_image_features(**processor.image_processor([image])) for image in images]
        torch.testing.assert_close(torch.cat(one_by_one), features, atol=1e-5, rtol=0)
        if case.grids:
            as_tuples = [tuple(grid) for grid in inputs["grids"].tolist()]
            assert torch.equal(model.get_image_features(inputs["pixel_values"], as_tuples), features)
    inputs["pixel_values"] = torch.cat([inputs["pixel_values"], inputs["pixel_values"][:1]])
    message = rf"{case.slots * sum(views)} image slots but {sum(views) + 1} views x {case.slots} features"
    with pytest.raises(ValueError, match=message):
        model(ids, **inputs)


def test_views_and_grids_of_the_images_in_these_tests(assistant, case, images):
    processor = assistant[1]
    assert views_of(processor, images) == case.views
    grids = processor.image_processor(images).get("grids")
    assert (None if grids is None else grids.tolist()) == case.grids


def test_prompts_of_the_chat_template_have_the_ids_of_render(assistant, case, images):
    _, processor = assistant
    a, b, c, d = images
    texts, images_of_rows = ("What is this?", "Hm", "And? <imgpad>"), ([a, b], [], [c, d])
    talks = [question(len(row), text) for text, row in zip(texts, images_of_rows, strict=True)]
    rows = [
        processor.render(talk, views_of(processor, row), add_generation_prompt=True).input_ids
        for talk, row in zip(talks, images_of_rows, strict=True)
    ]
    prompts = [processor.apply_chat_template(talk, add_generation_prompt=True) for talk in talks[:2]]
    for talk, row in zip(talks, images_of_rows, strict=True):
        for part, image in zip(talk[0]["content"], row, strict=False):
            part["image"] = image
    written = processor(text=prompts, images=images_of_rows[:2])
    options = {"add_generation_prompt": True, "return_dict": True, "processor_kwargs": {"padding": True}}
    tokenized = processor.apply_chat_template(talks, tokenize=True, **options)
    for inputs in (written, tokenized):
        for row, ids, mask in zip(rows, inputs["input_ids"], inputs["attention_mask"], strict=False):
            assert ids[mask.bool()].tolist() == row
    assert_equal_images(tokenized, processor.image_processor([a, b, c, d]))
    assert_equal_images(written, processor.image_processor([a, b]))
    assert (len(tokenized["input_ids"]), len(tokenized["pixel_values"])) == (3, sum(case.views))
    with pytest.raises(UserError, match="the text has places for 2 images, but 3 images were given"):
        processor(text=prompts, images=[a, b, c])


def test_saved_and_reopened(generator, assistant, case, make_image):
    spec = generator.processor.image_processor.specs[0]
    assert spec == generator.model.towers[0].spec == assistant[0].towers[0].spec
    assert spec.native if case.grids else spec.preprocessing == TILES
    wide = [make_image(3, 90, 25)]
    assert_equal_images(generator.processor.image_processor(wide), assistant[1].image_processor(wide))
    comparison = assistant[1].comparison_inputs()
    assert len(comparison["pixel_values"]) == case.comparison_views
    if case.grids:
        assert comparison["grids"].tolist() == [[2, 4]]


def test_a_batch_gives_the_answers_of_single_conversations(generator, images):
    rows = [[images[0]], [], images[1:3], [images[3]]]
    conversations = [question(len(row)) for row in rows]
    together = generator.generate(conversations, rows, max_new_tokens=8)
    alone = [generator.generate([c], [row], max_new_tokens=8)[0] for c, row in zip(conversations, rows, strict=True)]
    assert together == alone and len(set(alone)) > 1
    assert generator.caption(images, max_new_tokens=6) == [
        generator.chat("Describe the image.", image, max_new_tokens=6) for image in images
    ]
    stream = generator.stream("What is this?", images[2], max_new_tokens=8)
    assert "".join(stream).strip() == generator.chat("What is this?", images[2], max_new_tokens=8)


def test_copied_rows_keep_all_views_of_their_images(generator, images, monkeypatch):
    model, processor = generator.model, generator.processor
    a, b, c, _ = images
    inputs = processor(
        text=[processor.apply_chat_template(question(n), add_generation_prompt=True) for n in (2, 0, 1)],
        images=[a, b, c],
    )
    twice = processor.image_processor([a, b, a, b, c, c])
    _, copied = model._expand_inputs_for_generation(2, **inputs)
    assert_equal_images(copied, twice)
    greedy = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    tower_inputs = []
    tower_class = type(model.towers[0])
    forward = tower_class.forward

    def recording_forward(tower, pixels, **options):
        tower_inputs.append(pixels)
        return forward(tower, pixels, **options)

    monkeypatch.setattr(tower_class, "forward", recording_forward)
    several = model.generate(**inputs, max_new_tokens=3, num_beams=2, num_return_sequences=2)
    assert torch.equal(tower_inputs[0], twice["pixel_values"])
    assert len(several) == 2 * len(greedy)


def test_repeat_rows():
    assert repeat_rows([2, 0, 1], 2).tolist() == [0, 1, 0, 1, 2, 2]


def test_towers_of_one_model_see_the_same_tiles(make_assistant, make_tower, make_image, tmp_path):
    tiled = make_tower(preprocessing=TILES)
    for other in (make_tower(), make_tower(preprocessing=Preprocessing(fit="tiles")), _larger(make_tower)):
        with pytest.raises(UserError, match="all towers must see the same tiles"):
            make_assistant(towers=[tiled, other], fusion="sequence")
    two = [make_tower(seed, preprocessing=TILES) for seed in range(2)]
    model, processor = make_assistant(towers=two)
    pixels = processor.image_processor([make_image(0, *SIZES[0])])["pixel_values"]
    assert [len(views) for views in pixels] == [3, 3] and len(model.get_image_features(pixels)) == 3
    unequal = make_assistant(towers=[make_tower(), _larger(make_tower, fit="squash")], fusion="sequence")
    save_assistant(*unequal, tmp_path / "model")
    for load in (load_assistant, load_processor):
        with pytest.raises(UserError, match="all towers must see the same tiles"):
            load(tmp_path / "model", fit="tiles")


def _larger(make_tower, fit="tiles"):
    tiling = TILES.tiling if fit == "tiles" else None
    return make_tower(
        backbone={"image_size": 56, "patch_size": 14}, preprocessing=Preprocessing(fit=fit, tiling=tiling)
    )


def test_a_cropping_model_loads_with_tiles(assistant_dir, tmp_path):
    model, processor = load_assistant(assistant_dir, fit="tiles")
    assert (
        model.towers[0].spec.preprocessing.tiling == processor.image_processor.specs[0].preprocessing.tiling == Tiling()
    )
    save_assistant(model, processor, tmp_path / "model")
    again, its_processor = load_assistant(tmp_path / "model", fit="tiles")
    reloaded = its_processor.image_processor.specs[0].preprocessing.tiling
    assert reloaded == again.towers[0].spec.preprocessing.tiling == Tiling()
    assert load_assistant(tmp_path / "model", fit="pad")[1].image_processor.views((300, 10)) == 1


def test_grids_change_the_features(assistants, make_image):
    """The same patches arranged 2 x 5 and 5 x 2."""
    model, processor = assistants["native"]
    inputs = processor.image_processor([make_image(0, *SIZES[0])])
    with torch.no_grad():
        features = model.get_image_features(**inputs)
        transposed = model.get_image_features(inputs["pixel_values"], inputs["grids"].flip(1))
    assert (features - transposed).abs().max() > 1e-2


def test_projectors_that_merge_patches_refuse_native_aspect(make_assistant, native_tower):
    for name, what in (
        ("pixel_shuffle", "pixel shuffle"),
        ("avg_pool1_mlp2x_gelu", "average pooling by 1"),
        ("resampler4", "the resampler"),
    ):
        with pytest.raises(UserError, match=rf"{what} needs a square of patches, and with fit native .* \(linear, mlp"):
            make_assistant(towers=[native_tower], projector=name)
    assert slots_per_tower([native_tower.spec] * 2, ["linear", "mlp3x_gelu"]) == [1, 1]


def test_a_native_tower_must_be_the_only_one(make_assistant, make_tower, native_tower):
    with pytest.raises(UserError, match="a tower of fit native must be the only one, found shortest-edge-crop, native"):
        make_assistant(towers=[make_tower(), native_tower], fusion="sequence")


def test_native_and_square_models_load_with_the_other_fit(assistant_dir, assistants, tmp_path):
    save_assistant(*assistants["native"], tmp_path / "native")
    squares, processor = load_assistant(tmp_path / "native", fit="squash")
    alone = load_processor(tmp_path / "native", fit="squash")
    assert squares.image_tokens == processor.image_tokens == alone.image_tokens == 16
    assert processor.image_processor.specs == alone.image_processor.specs == squares.specs
    save_assistant(squares, processor, tmp_path / "squares")
    again, its_processor = load_assistant(tmp_path / "squares", fit="native")
    alone = load_processor(tmp_path / "squares", "native")
    assert again.image_tokens == its_processor.image_tokens == alone.image_tokens == 1
    assert again.specs[0].preprocessing.max_patches == 16  # the config has no limit, so the number of positions
    for load in (load_assistant, load_processor):
        with pytest.raises(UserError, match="which is siglip2; found clip_vit"):
            load(assistant_dir, fit="native")
