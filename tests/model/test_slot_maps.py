"""Assistants of fits anyres and split: their slots show what LLaVA-NeXT, OneVision and Idefics3 would insert there."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from mmchat.errors import UserError
from mmchat.inference import Generator
from mmchat.model.directory import load_assistant, load_processor, save_assistant
from mmchat.vision import NANOVLM_MARKERS, AnyRes, Split
from mmchat.vision.spec import Preprocessing

SIZES = ((60, 28), (28, 28), (30, 95), (57, 56), (100, 30))
"""Five aspect ratios."""
ONEVISION = AnyRes(((1, 1), (1, 2), (2, 1), (2, 2), (3, 1)), 2, True)
KINDS = {
    "next": Preprocessing(fit="anyres"),
    "onevision": Preprocessing(fit="anyres", tiling=ONEVISION),
    "split": Preprocessing(fit="split", tiling=Split(56)),
    "nanovlm": Preprocessing(fit="split", tiling=Split(56, "nanovlm", False, "first", None, NANOVLM_MARKERS)),
}


@pytest.fixture(scope="module")
def assistants(make_assistant, make_tower):
    return {
        name: make_assistant(towers=[make_tower(layer=-2, preprocessing=how)], max_position_embeddings=1024)
        for name, how in KINDS.items()
    }


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def generator(kind, assistants, tmp_path_factory):
    directory = tmp_path_factory.mktemp(kind) / "model"
    save_assistant(*assistants[kind], directory)
    return Generator(directory, device="cpu")


@pytest.fixture
def images(make_image):
    return [make_image(seed, *size) for seed, size in enumerate(SIZES)]


def question(images, text="What is this?"):
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@torch.no_grad()
def packed_by_the_class(model, pixels, size):
    """Features of one image, as transformers' class packs ours: float[slots, D]."""
    tiling = model.specs[0].preprocessing.tiling
    pinpoints = [[28 * rows, 28 * columns] for rows, columns in tiling.grids]
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=28, patch_size=7), image_grid_pinpoints=pinpoints)
    views = model.projectors[0](model.towers[0](pixels).patches)
    theirs, sizes = SimpleNamespace(config=config), torch.tensor([size[::-1]])
    newline = model.projectors.image_newline
    if tiling.max_tiles is None:
        return LlavaNextModel.pack_image_features(theirs, [views], sizes, "default", newline)[0][0]
    limit = f"anyres_max_{tiling.max_tiles}"
    return LlavaOnevisionModel.pack_image_features(theirs, [views], sizes, newline, limit)[0][0]


@pytest.mark.parametrize("kind", ["next", "onevision"])
def test_features_of_slots_are_those_of_the_class(kind, assistants, images):
    model, processor = assistants[kind]
    with torch.no_grad():
        together = model.get_image_features(**processor.image_inputs([[image] for image in images]))
    counts = [layout.slots for image in images for layout in processor.layouts([image.size])]
    for image, found in zip(images, together.split(counts), strict=True):
        expected = packed_by_the_class(model, processor.image_inputs([[image]])["pixel_values"], image.size)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_markers_are_control_tokens_and_never_supervised(assistants):
    processor = assistants["split"][1]
    tokenizer = processor.tokenizer
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "<row_1_col_1>"}]
    rendered = processor.render(talk, processor.layouts([(60, 28)]))
    ((start, stop),) = rendered.image_spans
    ids = rendered.input_ids[start:stop]
    slots = [processor.slot_tokens.pad] * 16
    fake, newline = "<fake_token_around_image>", tokenizer("a\n", add_special_tokens=False).input_ids[1:]
    after = tokenizer("a\n\n", add_special_tokens=False).input_ids[1:]
    expected = tokenizer.convert_tokens_to_ids([fake, "<row_1_col_1>", *slots, fake, "<row_1_col_2>", *slots])
    expected += after + tokenizer.convert_tokens_to_ids([fake, "<global-img>", *slots, fake])
    assert ids == expected and newline
    assert set(rendered.labels[:stop]) == {-100}
    marker = tokenizer.convert_tokens_to_ids("<row_1_col_1>")
    assert ids.count(marker) == 1 and marker not in rendered.input_ids[stop:]  # typed text stays text


def test_prompts_of_the_chat_template_have_the_ids_of_render(assistants, kind, images):
    _, processor = assistants[kind]
    rows_of_images = ([images[0]], [], images[1:3], [images[4]])
    talks = [question(len(row)) for row in rows_of_images]
    rows = [
        processor.render(talk, processor.layouts([i.size for i in row]), add_generation_prompt=True).input_ids
        for talk, row in zip(talks, rows_of_images, strict=True)
    ]
    prompts = [processor.apply_chat_template(talk, add_generation_prompt=True) for talk in talks]
    flat = [image for row in rows_of_images for image in row]
    inputs = [processor(text=prompts, images=given) for given in (rows_of_images, flat)]
    for talk, row in zip(talks, rows_of_images, strict=True):
        for part, image in zip(talk[0]["content"], row, strict=False):
            part["image"] = image
    options = {"add_generation_prompt": True, "return_dict": True, "processor_kwargs": {"padding": True}}
    inputs.append(processor.apply_chat_template(talks, tokenize=True, **options))
    expected = processor.image_inputs(rows_of_images)
    for one in inputs:
        for row, ids, mask in zip(rows, one["input_ids"], one["attention_mask"], strict=True):
            assert ids[mask.bool()].tolist() == row
        for name, value in expected.items():
            assert torch.equal(one[name], value)


def test_a_batch_gives_the_answers_of_single_conversations(generator, images):
    rows = [[images[0]], [], images[1:3], [images[3]], [images[4]]]
    conversations = [question(len(row)) for row in rows]
    together = generator.generate(conversations, rows, max_new_tokens=8)
    alone = [generator.generate([c], [row], max_new_tokens=8)[0] for c, row in zip(conversations, rows, strict=True)]
    assert together == alone and len(set(alone)) > 1
    stream = generator.stream("What is this?", images[2], max_new_tokens=8)
    assert "".join(stream).strip() == generator.chat("What is this?", images[2], max_new_tokens=8)


def test_copied_rows_keep_their_slots(generator, images):
    model, processor = generator.model, generator.processor
    prompts = [processor.apply_chat_template(question(n), add_generation_prompt=True) for n in (2, 0, 1)]
    inputs = processor(text=prompts, images=images[:3])
    _, copied = model._expand_inputs_for_generation(2, **inputs)
    copied = {name: value for name, value in copied.items() if name not in ("input_ids", "attention_mask")}
    a, b, c = images[:3]
    names = {name: inputs[name] for name in inputs if name in copied}
    once, twice = model.get_image_features(**names), model.get_image_features(**copied)
    expected = model.get_image_features(**processor.image_inputs([[a, b], [a, b], [], [], [c], [c]]))
    torch.testing.assert_close(twice, expected, atol=1e-5, rtol=0)
    assert len(twice) == 2 * len(once)
    several = model.generate(**inputs, max_new_tokens=3, num_beams=2, num_return_sequences=2)
    assert len(several) == 6


def test_the_newline_is_trained_and_saved(assistants, tmp_path):
    model, processor = assistants["next"]
    newline = model.projectors.image_newline
    assert dict(model.named_parameters())["projectors.image_newline"] is newline and newline.shape == (32,)
    save_assistant(model, processor, tmp_path / "model")
    again, its_processor = load_assistant(tmp_path / "model")
    assert torch.equal(again.projectors.image_newline, newline)
    assert its_processor.image_processor.specs == again.specs == model.specs
    squares, _ = load_assistant(tmp_path / "model", fit="pad")
    assert squares.projectors.image_newline is None and not squares.uses_slot_maps
    assert "projectors.image_newline" not in squares.state_dict()


def test_a_cropping_model_gets_a_newline_that_is_always_the_same(assistant_dir):
    models = [load_assistant(assistant_dir, fit="anyres")[0] for _ in range(2)]
    one, other = (model.projectors.image_newline for model in models)
    assert torch.equal(one, other) and 0.1 < one.std() * 32**0.5 < 2
    assert load_processor(assistant_dir, fit="anyres").image_processor.specs == models[0].specs


def test_text_alone_gives_the_newline_a_gradient_of_zero(assistants):
    model, processor = assistants["next"]
    ids = torch.tensor([processor.render([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]).input_ids])
    model.zero_grad()
    none = torch.zeros(0, dtype=torch.long)
    loss = model(ids, labels=ids, pixel_values=torch.zeros(1, 3, 28, 28), slot_indices=none, dummy_images=1).loss
    loss.backward()
    seeing = [model.projectors.image_newline, *model.projectors[0].parameters()]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in seeing)
    model.zero_grad()


def test_what_does_not_fit_is_refused(assistants, images, make_assistant, make_tower):
    model, processor = assistants["next"]
    inputs = processor.image_inputs([[images[0]]])
    ids = torch.tensor(
        [processor.render(question(1), processor.layouts([images[1].size]), add_generation_prompt=True).input_ids]
    )
    with pytest.raises(ValueError, match=r"the batch has \d+ image slots but a slot map of \d+ slots; slots per row"):
        model(ids, **inputs)
    with pytest.raises(ValueError, match="images of this model come with slot_indices"):
        model.get_image_features(inputs["pixel_values"])
    towers = [make_tower(seed, preprocessing=KINDS["next"]) for seed in range(2)]
    with pytest.raises(UserError, match="which needs towers fused on channels"):
        make_assistant(towers=towers, fusion="sequence")
    with pytest.raises(UserError, match=r"form a square and no class token, found \[17\]"):
        make_assistant(towers=[make_tower(class_token=True, preprocessing=KINDS["next"])])
    with pytest.raises(UserError, match=r"hold 1 image, image_tokens is given for 0"):
        processor.render(question(1), add_generation_prompt=True)
