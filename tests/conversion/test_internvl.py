"""InternVL in transformers' layout: import, training, export and the way back, judged by transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer, InternVLConfig

from mmchat.auto import MMChatProcessor
from mmchat.conversation import SlotTokens
from mmchat.conversion import export_model, import_model
from mmchat.conversion.formats.internvl import InternVL
from mmchat.errors import UserError
from mmchat.model.directory import save_assistant
from mmchat.vision import TowerConfig, build_tower
from mmchat.vision.spec import Preprocessing
from mmchat.vision.transforms.tiling import Tiling
from tests.conversion.internvl_models import (
    JINJA,
    SLOTS,
    VISION,
    foreign_inputs,
    image_of,
    make_image_processor,
    make_internvl,
)

TOLERANCE = {"atol": 1e-4, "rtol": 0}
SIZES = {(30, 30): 1, (34, 30): 1, (28, 90): 4, (60, 56): 5, (110, 60): 3}
"""Size of an image -> its views with at most four tiles."""


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def published(request, tmp_path_factory):
    """(directory, transformers' model)"""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, make_internvl(folder, request.param, tied=request.param == "qwen2")


def prompt(folder, images, question="What is this?"):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}]
    return tokenizer, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def ours(processor, images, question="What is this?"):
    """Inputs here. The line break after an image belongs to the text."""
    content = [part for _ in images for part in ({"type": "image"}, {"type": "text", "text": "\n"})]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    views = [processor.image_processor.views(image.size) for image in images]
    ids = torch.tensor([processor.render(messages, views, add_generation_prompt=True).input_ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **processor.image_processor(images)}


@pytest.mark.parametrize("sizes", [[size] for size in SIZES] + [list(SIZES)[-2:]], ids=str)
def test_logits_and_answers_of_transformers(published, sizes):
    folder, theirs = published
    model, processor = import_model(folder)
    images = [image_of(size) for size in sizes]
    assert [processor.image_processor.views(size) for size in sizes] == [SIZES[size] for size in sizes]
    tokenizer, text = prompt(folder, len(images))
    expected = foreign_inputs(tokenizer, make_image_processor(), text, images)
    inputs = ours(processor, images)
    assert inputs["input_ids"].tolist() == expected["input_ids"].tolist()
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, theirs(**expected).logits, **TOLERANCE)
    settings = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    answer = theirs.generate(**expected, **settings)
    assert torch.equal(model.generate(**inputs, **settings), answer)


def test_one_square_if_the_processor_makes_one(tmp_path):
    make_internvl(tmp_path, processor={"max_patches": 1})
    _, processor = import_model(tmp_path)
    assert processor.image_processor.specs[0].preprocessing.fit == "squash"


def test_keys_of_transformers_5_open_too(tmp_path):
    theirs = make_internvl(tmp_path, vision_feature_layer=-2)
    theirs.save_pretrained(tmp_path, save_original_format=False)
    model, processor = import_model(tmp_path)
    inputs = ours(processor, [image_of((110, 60))])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, theirs(**inputs).logits, **TOLERANCE)


def test_template_and_tokens(published):
    _, processor = import_model(published[0])
    assert (processor.template, processor.system, processor.slot_tokens) == ("chatml", "", SLOTS)


def test_another_chat_template_stays_the_tokenizers_own(tmp_path):
    make_internvl(tmp_path, jinja=JINJA.replace("role'] + '\n'", "role'] + ': '").replace("assistant\n", "assistant: "))
    _, processor = import_model(tmp_path)
    rendered = processor.render([{"from": "human", "value": "<image>\nHi"}], [1], add_generation_prompt=True)
    text = processor.tokenizer.decode(rendered.input_ids)
    assert processor.template == "auto" and text.endswith("\nHi<|im_end|>\n<|im_start|>assistant: ")


@pytest.mark.slow
def test_twenty_steps_of_training(published):
    model, processor = import_model(published[0])
    messages = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A wide image."}]
    image = image_of((110, 60))
    rendered = processor.render(messages, [processor.image_processor.views(image.size)])
    inputs = {"input_ids": torch.tensor([rendered.input_ids]), "labels": torch.tensor([rendered.labels])}
    inputs |= processor.image_processor([image])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        losses.append(model.train()(**inputs).loss)
        losses[-1].backward()
        assert model.towers[0].blocks[0].lambda_1.grad is not None
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 2


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"downsample_ratio": 0.25}, "downsample_ratio 0.25"),
        ({"projector_hidden_act": "relu"}, "projector activation 'relu'"),
        ({"image_token_id": 7}, r"<IMG_CONTEXT> is \d+ instead of 7"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(tmp_path, config, message):
    make_internvl(tmp_path)
    change_config(tmp_path, **config)
    with pytest.raises(UserError, match=message):
        import_model(tmp_path)


def test_a_processor_of_another_size_is_refused(tmp_path):
    make_internvl(tmp_path, processor={"size": {"height": 56, "width": 56}})
    with pytest.raises(UserError, match=r"processor_config\.json makes squares of 56 pixels, but the tower .* has 28"):
        import_model(tmp_path)


@pytest.fixture(scope="module")
def exported(published, tmp_path_factory):
    """(imported, exported again)"""
    ours, out = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("out") / "internvl"
    save_assistant(*import_model(published[0]), ours / "model")
    export_model(ours / "model", "hf", out)
    return ours / "model", out


def test_there_and_back_is_bit_identical(published, exported):
    before, after = (load_file(folder / "model.safetensors") for folder in (published[0], exported[1]))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    model, processor = import_model(exported[1])
    again = load_file(exported[0] / "model.safetensors")
    assert all(torch.equal(again[key], tensor) for key, tensor in model.state_dict().items() if key in again)
    assert (processor.template, processor.system, processor.slot_tokens) == ("chatml", "", SLOTS)
    specs = processor.image_processor.specs
    assert specs == MMChatProcessor.from_pretrained(exported[0]).image_processor.specs


def test_the_tokens_that_the_processor_looks_for(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported[1])
    found = [tokenizer.start_image_token, tokenizer.end_image_token, tokenizer.context_image_token]
    assert (found, tokenizer.video_token) == ([SLOTS.start, SLOTS.end, SLOTS.pad], "<video>")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith(f"<|im_start|>user\n{SLOTS.pad}\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_processor_of_transformers_makes_the_same_inputs(exported):
    """Where torchvision is, which it needs. Its resampling differs from Pillow's by rounding."""
    pytest.importorskip("torchvision")
    theirs, ours = AutoProcessor.from_pretrained(exported[1]), MMChatProcessor.from_pretrained(exported[0])
    for size, views in SIZES.items():
        content = [{"type": "image", "image": image_of(size)}, {"type": "text", "text": "What is this?"}]
        messages = [{"role": "user", "content": content}]
        inputs = theirs.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        assert inputs["input_ids"][0].tolist() == ours.render(messages, [views], add_generation_prompt=True).input_ids
        pixels = ours.image_processor([image_of(size)])["pixel_values"]
        torch.testing.assert_close(inputs["pixel_values"], pixels, atol=0.05, rtol=0)


@pytest.fixture(scope="module")
def assistant(make_assistant):
    def make(projector="pixel_shuffle", slots=None, **tower):
        settings = {"preprocessing": Preprocessing(fit="tiles", tiling=Tiling(max_tiles=4)), **tower}
        towers = [build_tower(TowerConfig("internvit", VISION, **settings))]
        model, processor = make_assistant("qwen2", towers=towers, projector=projector)
        if slots is not None:
            model.config.slots = slots.to_dict()
        return model, processor

    return make


def test_an_assistant_made_here(assistant, tmp_path):
    """One square is one tile; a normed layer -1 stays so."""
    backbone = VISION | {"use_mean_pooling": False}
    tower = build_tower(TowerConfig("internvit", backbone, final_norm=True, preprocessing=Preprocessing(fit="squash")))
    model, processor = assistant()
    model.towers[0], model.config.towers = tower, [tower.config.to_dict()]
    processor.set_towers(model.specs, model.image_tokens)
    save_assistant(model, processor, tmp_path / "model")
    lines = export_model(tmp_path / "model", "internvl", tmp_path / "out")
    assert "logits for 1 image, 2 images, text" in lines[1]
    again, processor = import_model(tmp_path / "out")
    assert again.towers[0].config.final_norm and again.specs[0].preprocessing.fit == "squash"
    assert processor.slot_tokens.pad == "<imgpad>"


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"projector": "mlp2x_gelu"}, ["its projector is mlp2x_gelu, expected pixel_shuffle"]),
        ({"slots": SlotTokens("<imgpad>")}, ["it has no tokens before and after"]),
        ({"preprocessing": Preprocessing(fit="pad")}, ["its fit is 'pad', expected 'tiles' or 'squash'"]),
        ({"preprocessing": Preprocessing(fit="tiles", tiling=Tiling(1, 4, False))}, ["without a thumbnail"]),
        ({"layer": (-1, -2)}, ["those of 2 layers, expected one"]),
        ({"class_token": True, "projector": "linear"}, ["include the class token", "its projector is linear"]),
    ],
    ids=str,
)
def test_what_the_class_cannot_express(assistant, changes, reasons):
    model, processor = assistant(**changes)
    found = InternVL().refusals(model.config, processor)
    assert len(found) == len(reasons) and all(part in reason for part, reason in zip(reasons, found, strict=True))


def test_other_towers_are_refused(make_assistant, make_tower):
    model, _ = make_assistant(towers=[make_tower()], projector="pixel_shuffle")
    assert InternVL().refusals(model.config) == ["its tower is of family clip_vit, expected internvit"]


def test_loading_is_strict(tmp_path):
    make_internvl(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "multi_modal_projector.linear_1.bias"
    save_file({key: t for key, t in state.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: projectors\.0\.2\.bias$"):
        import_model(tmp_path)
    save_file(state | {"vision_tower.extra": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"left over: towers\.0\.backbone\.extra$"):
        import_model(tmp_path)


def test_a_head_that_the_config_ties_to_other_embeddings_is_refused(tmp_path):
    make_internvl(tmp_path)
    change_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"lm_head\.weight\) differs from the embeddings, but its config ties the two"):
        import_model(tmp_path)


def test_a_head_is_kept_if_only_the_default_of_the_class_ties_it(tmp_path):
    """InternVLConfig ties by default. Files that transformers 4 wrote do not say it, and its class did not tie them."""
    theirs = make_internvl(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("tie_word_embeddings") is False and InternVLConfig().tie_word_embeddings
    path.write_text(json.dumps(values))
    model, processor = import_model(tmp_path)
    assert not model.config.tie_word_embeddings  # else the head would be lost when it is saved
    inputs = ours(processor, [image_of((30, 30))])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, theirs(**inputs).logits, **TOLERANCE)
