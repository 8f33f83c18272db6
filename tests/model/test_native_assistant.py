"""An assistant that sees images of native aspect: a slot for each patch, and every way to them agrees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.errors import UserError
from mmchat.inference import Generator
from mmchat.model.directory import load_assistant, load_processor, save_assistant
from mmchat.model.modeling import repeat_rows
from mmchat.model.projectors import slots_per_tower

SIZES = ((60, 28), (28, 28), (30, 95), (57, 56))
"""Of 10, 9, 12 and 9 patches."""


@pytest.fixture(scope="module")
def assistant(make_assistant, native_tower):
    return make_assistant(towers=[native_tower])


@pytest.fixture(scope="module")
def generator(assistant, tmp_path_factory):
    directory = tmp_path_factory.mktemp("native") / "model"
    save_assistant(*assistant, directory)
    return Generator(directory, device="cpu")


def question(images, text="What is this?"):
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


sizes = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(sizes=sizes)
def test_slots_rendered_are_views_counted_are_features_made(assistant, make_image, sizes):
    model, processor = assistant
    images = [make_image(seed, *size) for seed, size in enumerate(sizes)]
    counted = [processor.image_processor.views(size) for size in sizes]
    seen = processor.image_processor(images)
    assert seen["grids"].prod(dim=1).tolist() == counted and max(counted) <= 12
    rendered = processor.render(question(len(images)), counted, add_generation_prompt=True)
    assert [stop - start for start, stop in rendered.image_spans] == counted
    with torch.no_grad():
        features = model.get_image_features(**seen)
        assert features.shape == (sum(counted), 1, 32)
        ids = torch.tensor([rendered.input_ids])
        whole = model(ids, **seen, logits_to_keep=1).logits
        assert torch.isfinite(whole).all()
        alone = [model.get_image_features(**processor.image_processor([one])) for one in images]
        torch.testing.assert_close(torch.cat(alone), features, atol=1e-5, rtol=0)
        as_tuples = [tuple(grid) for grid in seen["grids"].tolist()]
        assert torch.equal(model.get_image_features(seen["pixel_values"], as_tuples), features)
    with pytest.raises(ValueError, match=rf"{sum(counted)} image slots but {sum(counted) + 1} views x 1 features"):
        model(ids, pixel_values=torch.cat([seen["pixel_values"], seen["pixel_values"][:1]]), grids=seen["grids"])


def test_another_grid_is_seen_otherwise(assistant, make_image):
    """The same patches laid 2 x 5 and 5 x 2: what is passed along matters."""
    model, processor = assistant
    seen = processor.image_processor([make_image(0, *SIZES[0])])
    assert seen["grids"].tolist() == [[2, 5]]
    with torch.no_grad():
        features = model.get_image_features(**seen)
        turned = model.get_image_features(seen["pixel_values"], seen["grids"].flip(1))
    assert (features - turned).abs().max() > 1e-2


def test_prompts_of_the_chat_template_have_the_ids_of_render(assistant, make_image):
    _, processor = assistant
    images = [make_image(seed, *size) for seed, size in enumerate(SIZES[:2])]
    talk = question(2)
    views = [processor.image_processor.views(one.size) for one in images]
    ids = processor.render(talk, views, add_generation_prompt=True).input_ids
    written = processor(text=processor.apply_chat_template(talk, add_generation_prompt=True), images=images)
    assert written["input_ids"].tolist() == [ids]
    assert written["grids"].tolist() == [[2, 5], [3, 3]]


def test_saved_and_reopened(generator, assistant, make_image):
    spec = generator.processor.image_processor.specs[0]
    assert spec == generator.model.towers[0].spec == assistant[0].towers[0].spec and spec.native
    wide = make_image(3, 90, 25)
    inputs, again = (one.image_processor([wide]) for one in (assistant[1], generator.processor))
    assert torch.equal(again["pixel_values"], inputs["pixel_values"]) and torch.equal(again["grids"], inputs["grids"])
    assert assistant[1].comparison_inputs()["grids"].tolist() == [[2, 4]]


def test_a_batch_answers_as_each_alone(generator, make_image):
    images = [make_image(seed, *size) for seed, size in enumerate(SIZES)]
    cases = [[images[0]], [], images[1:3], [images[3]]]
    conversations = [question(len(case)) for case in cases]
    together = generator.generate(conversations, cases, max_new_tokens=8)
    alone = [generator.generate([c], [p], max_new_tokens=8)[0] for c, p in zip(conversations, cases, strict=True)]
    assert together == alone and len(set(alone)) > 1
    assert generator.caption(images, batch_size=4, max_new_tokens=6) == [
        generator.chat("Describe the image.", one, max_new_tokens=6) for one in images
    ]
    stream = generator.stream("What is this?", images[2], max_new_tokens=8)
    assert "".join(stream).strip() == generator.chat("What is this?", images[2], max_new_tokens=8)


def test_copies_of_a_row_keep_its_images_and_grids(generator, make_image):
    model, processor = generator.model, generator.processor
    a, b, c = (make_image(seed, *size) for seed, size in enumerate(SIZES[:3]))
    inputs = processor(
        text=[processor.apply_chat_template(question(n), add_generation_prompt=True) for n in (2, 0, 1)],
        images=[a, b, c],
    )
    _, copied = model._expand_inputs_for_generation(2, **inputs)
    assert copied["grids"].tolist() == [[2, 5], [3, 3], [2, 5], [3, 3], [6, 2], [6, 2]]
    twice = processor.image_processor([a, b, a, b, c, c])
    assert torch.equal(copied["pixel_values"], twice["pixel_values"])
    assert torch.equal(twice["grids"], copied["grids"])
    greedy = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    several = model.generate(**inputs, max_new_tokens=3, num_beams=2, num_return_sequences=2)
    assert len(several) == 2 * len(greedy)


def test_copied_rows():
    assert repeat_rows([2, 0, 1], 2).tolist() == [0, 1, 0, 1, 2, 2]


def test_projectors_that_merge_patches_are_refused(make_assistant, native_tower):
    for name, what in (
        ("pixel_shuffle", "pixel shuffle"),
        ("avg_pool1_mlp2x_gelu", "average pooling by 1"),
        ("resampler4", "the resampler"),
    ):
        with pytest.raises(UserError, match=rf"{what} needs a square of patches, and with fit native .* \(linear, mlp"):
            make_assistant(towers=[native_tower], projector=name)
    assert slots_per_tower([native_tower.spec] * 2, ["linear", "mlp3x_gelu"]) == [1, 1]


def test_it_is_the_only_tower(make_assistant, make_tower, native_tower):
    with pytest.raises(UserError, match="a tower of fit native must be the only one, found shortest-edge-crop, native"):
        make_assistant(towers=[make_tower(), native_tower], fusion="sequence")


def test_a_run_may_choose_squares_or_native(assistant_dir, generator, assistant, make_image, tmp_path):
    save_assistant(*assistant, tmp_path / "native")
    squares, processor = load_assistant(tmp_path / "native", fit="squash")
    alone = load_processor(tmp_path / "native", fit="squash")
    assert squares.image_tokens == processor.image_tokens == alone.image_tokens == 16
    assert processor.image_processor.specs == alone.image_processor.specs == squares.specs
    save_assistant(squares, processor, tmp_path / "squares")
    again, its = load_assistant(tmp_path / "squares", fit="native")
    assert again.image_tokens == its.image_tokens == load_processor(tmp_path / "squares", "native").image_tokens == 1
    assert again.specs[0].preprocessing.max_patches == 16  # nothing says how many, so as many as positions
    for opened in (load_assistant, load_processor):
        with pytest.raises(UserError, match="which is siglip2; found clip_vit"):
            opened(assistant_dir, fit="native")
