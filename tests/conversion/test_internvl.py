"""InternVL in transformers' layout: import, training, export and the way back, judged by transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mmchat.conversion import import_model
from mmchat.errors import UserError
from tests.conversion.internvl_models import JINJA, SLOTS, foreign_inputs, image_of, make_image_processor, make_internvl

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
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(UserError, match=message):
        import_model(tmp_path)


def test_a_processor_of_another_size_is_refused(tmp_path):
    make_internvl(tmp_path, processor={"size": {"height": 56, "width": 56}})
    with pytest.raises(UserError, match=r"processor_config\.json makes squares of 56 pixels, but the tower .* has 28"):
        import_model(tmp_path)


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
