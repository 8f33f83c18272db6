"""An assistant whose images are cut into tiles: slots hang on the image's size, and every way to them agrees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.errors import UserError
from mmchat.inference import Generator
from mmchat.model.directory import load_assistant, load_processor, save_assistant
from mmchat.vision import Tiling
from mmchat.vision.spec import Preprocessing

TILES = Preprocessing(fit="tiles", tiling=Tiling(max_tiles=4))
SIZES = ((60, 28), (28, 28), (30, 95), (57, 56))
"""Of 3, 1, 4 and 5 views in tiles of 28."""


@pytest.fixture(scope="module")
def assistant(make_assistant, make_tower):
    return make_assistant(towers=[make_tower(layer=-2, preprocessing=TILES)])


@pytest.fixture(scope="module")
def generator(assistant, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiles") / "model"
    save_assistant(*assistant, directory)
    return Generator(directory, device="cpu")


def question(images, text="What is this?"):
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def views_of(processor, images):
    return [processor.image_processor.views(image.size) for image in images]


sizes = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(sizes=sizes)
def test_views_counted_made_rendered_and_spliced_are_as_many(assistant, make_image, sizes):
    model, processor = assistant
    images = [make_image(seed, *size) for seed, size in enumerate(sizes)]
    counted = views_of(processor, images)
    pixels = processor.image_processor(images)["pixel_values"]
    assert [len(processor.image_processor.pixels(one)[0]) for one in images] == counted
    rendered = processor.render(question(len(images)), counted, add_generation_prompt=True)
    spans = [stop - start for start, stop in rendered.image_spans]
    assert spans == [16 * views for views in counted]
    with torch.no_grad():
        features = model.get_image_features(pixels)
        ids = torch.tensor([rendered.input_ids])
        assert features.shape == (sum(counted), 16, 32)
        whole = model(ids, pixel_values=pixels, logits_to_keep=1).logits
    assert torch.isfinite(whole).all()
    with pytest.raises(ValueError, match=rf"{16 * sum(counted)} image slots but {sum(counted) + 1} views x 16"):
        model(ids, pixel_values=torch.cat([pixels, pixels[:1]]))


def test_the_sizes_of_the_other_tests(assistant, make_image):
    assert views_of(assistant[1], [make_image(0, *size) for size in SIZES]) == [3, 1, 4, 5]


def test_prompts_of_the_chat_template_have_the_ids_of_render(assistant, make_image):
    _, processor = assistant
    a, b, c, d = (make_image(seed, *size) for seed, size in enumerate(SIZES))
    texts, images = ("What is this?", "Hm", "And? <imgpad>"), ([a, b], [], [c, d])
    talks = [question(len(of_row), text) for text, of_row in zip(texts, images, strict=True)]
    rows = [
        processor.render(talk, views_of(processor, of_row), add_generation_prompt=True).input_ids
        for talk, of_row in zip(talks, images, strict=True)
    ]
    prompts = [processor.apply_chat_template(talk, add_generation_prompt=True) for talk in talks[:2]]
    for talk, of_row in zip(talks, images, strict=True):
        for part, image in zip(talk[0]["content"], of_row, strict=False):
            part["image"] = image
    how = {"add_generation_prompt": True, "return_dict": True}
    written = processor(text=prompts, images=images[:2])
    tokenized = processor.apply_chat_template(talks, tokenize=True, processor_kwargs={"padding": True}, **how)
    for inputs in (written, tokenized):
        for row, ids, mask in zip(rows, inputs["input_ids"], inputs["attention_mask"], strict=False):
            assert ids[mask.bool()].tolist() == row
    assert torch.equal(tokenized["pixel_values"], processor.image_processor([a, b, c, d])["pixel_values"])
    assert (len(tokenized["input_ids"]), len(tokenized["pixel_values"])) == (3, 3 + 1 + 4 + 5)
    with pytest.raises(UserError, match="the text has places for 2 images, but 3 images were given"):
        processor(text=prompts, images=[a, b, c])


def test_saved_and_reopened(generator, assistant, make_image):
    spec = generator.processor.image_processor.specs[0]
    assert spec.preprocessing == TILES == generator.model.towers[0].spec.preprocessing
    wide = make_image(3, 90, 25)
    inputs = assistant[1].image_processor([wide])
    assert torch.equal(generator.processor.image_processor([wide])["pixel_values"], inputs["pixel_values"])
    assert len(assistant[1].comparison_inputs()["pixel_values"]) == 3


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


def test_copies_of_a_row_keep_all_views_of_its_images(generator, make_image, monkeypatch):
    model, processor = generator.model, generator.processor
    a, b, c = (make_image(seed, *size) for seed, size in enumerate(SIZES[:3]))
    inputs = processor(
        text=[processor.apply_chat_template(question(n), add_generation_prompt=True) for n in (2, 0, 1)],
        images=[a, b, c],
    )
    seen = []
    forward = type(model.towers[0]).forward
    monkeypatch.setattr(
        type(model.towers[0]), "forward", lambda tower, *args: seen.append(args[0]) or forward(tower, *args)
    )
    model.generate(**inputs, max_new_tokens=2, num_beams=2)
    first, last = [0, 1, 2, 3], [4, 5, 6, 7]  # views of the first row's two images, and of the last row's one
    assert torch.equal(seen[0], inputs["pixel_values"][first * 2 + last * 2])


def test_towers_of_one_model_see_the_same_views(make_assistant, make_tower, make_image, tmp_path):
    tiled = make_tower(preprocessing=TILES)
    for other in (make_tower(), make_tower(preprocessing=Preprocessing(fit="tiles")), _larger(make_tower)):
        with pytest.raises(UserError, match="all towers must see the same tiles"):
            make_assistant(towers=[tiled, other], fusion="sequence")
    two = [make_tower(seed, preprocessing=TILES) for seed in range(2)]
    model, processor = make_assistant(towers=two)
    pixels = processor.image_processor([make_image(0, *SIZES[0])])["pixel_values"]
    assert [len(seen) for seen in pixels] == [3, 3] and len(model.get_image_features(pixels)) == 3
    unequal = make_assistant(towers=[make_tower(), _larger(make_tower, fit="squash")], fusion="sequence")
    save_assistant(*unequal, tmp_path / "model")
    for opened in (load_assistant, load_processor):
        with pytest.raises(UserError, match="all towers must see the same tiles"):
            opened(tmp_path / "model", fit="tiles")


def _larger(make_tower, fit="tiles"):
    tiling = TILES.tiling if fit == "tiles" else None
    return make_tower(
        backbone={"image_size": 56, "patch_size": 14}, preprocessing=Preprocessing(fit=fit, tiling=tiling)
    )


def test_a_run_may_cut_into_tiles_what_its_model_cropped(assistant_dir, generator, tmp_path):
    model, processor = load_assistant(assistant_dir, fit="tiles")
    assert (
        model.towers[0].spec.preprocessing.tiling == processor.image_processor.specs[0].preprocessing.tiling == Tiling()
    )
    save_assistant(model, processor, tmp_path / "model")
    again, its = load_assistant(tmp_path / "model", fit="tiles")
    assert its.image_processor.specs[0].preprocessing.tiling == again.towers[0].spec.preprocessing.tiling == Tiling()
    assert load_assistant(tmp_path / "model", fit="pad")[1].image_processor.views((300, 10)) == 1
