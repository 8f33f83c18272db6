"""nanoVLM: imported with the logits and answers of a reference written after its source, and trained."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mmchat.conversion import import_model
from mmchat.conversion.checks import NEW_TOKENS
from mmchat.conversion.language import language_of_assistant
from mmchat.errors import UserError
from mmchat.model.directory import load_assistant, save_assistant
from mmchat.vision import preprocess
from tests.conversion.hf_models import assert_learns
from tests.conversion.nanovlm_models import (
    JINJA,
    PLACES,
    SIDE,
    SPLIT,
    TOKENS,
    image_text,
    make_nanovlm,
    open_tokenizer,
)

SIZES = {(90, 40): (2, 3), (28, 28): (1, 1), (30, 95): (3, 1), (57, 56): (3, 3), (20, 50): (2, 1)}
"""Five aspect ratios -> rows and columns of tiles, if the longer side has at most three."""
IMAGE_ONLY = {"image_token": TOKENS["image_token"]}
KINDS = {
    "split": (TOKENS, SPLIT),
    "no global view": (IMAGE_ONLY | PLACES, {**SPLIT, "resize_to_max_side_len": True, "lm_tie_weights": False}),
    "one square": (IMAGE_ONLY, {}),
}
"""What the published versions have: extra tokens, and other values of the config."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def published(kind, tmp_path_factory):
    """(directory, reference)"""
    folder = tmp_path_factory.mktemp("nanovlm")
    tokens, config = KINDS[kind]
    return folder, make_nanovlm(folder, tokens, **config)


@pytest.fixture(scope="module")
def imported(published):
    return import_model(published[0])


def grid_of(kind, size):
    if kind == "one square":
        return None
    if kind == "split":
        return SIZES[size]
    long = max(size)
    rows, columns = (max(1, -(-length * 3 // long)) for length in reversed(size))
    return rows, columns


def inputs_of(processor, images, question="What is this?"):
    messages = [{"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]}]
    layouts = processor.layouts([image.size for image in images])
    ids = torch.tensor([processor.render(messages, layouts, add_generation_prompt=True).input_ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **processor.image_inputs([images])}


@pytest.mark.parametrize("sizes", [*([size] for size in SIZES), list(SIZES)[:2]], ids=str)
def test_ids_logits_and_answers(kind, published, imported, make_image, sizes):
    (folder, reference), (model, processor) = published, imported
    tokens = KINDS[kind][0]
    images = [make_image(number, *size) for number, size in enumerate(sizes)]
    inputs = inputs_of(processor, images)
    tokenizer = open_tokenizer(folder, tokens)
    content = image_text([grid_of(kind, size) for size in sizes], tokens) + "What is this?"
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
    )
    assert inputs["input_ids"][0].tolist() == expected
    ids, views, image = inputs["input_ids"], inputs["pixel_values"], tokenizer.convert_tokens_to_ids("<|image|>")
    with torch.no_grad():
        logits = reference(ids, views, image)
        assert logits.std() > 0.1
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-4, rtol=0)
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    answer = model.generate(**inputs, **settings, eos_token_id=len(tokenizer) + 9)  # none: the reference has no EOS
    assert answer[0, -NEW_TOKENS:].tolist() == reference.greedy(ids, views, image, NEW_TOKENS)


def test_pixels_are_those_of_torchvision(kind, imported, make_image):
    """On a PIL image its `resize` is Pillow's; on a tensor, as of the whole image, torch's with antialiasing."""
    spec, image = imported[1].image_processor.specs[0], make_image(3, 90, 40)
    views = torch.tensor(preprocess(image, spec)).float() / 255
    if kind == "one square":
        expected = pixels(image.resize((SIDE, SIDE), 2))[None]
    else:
        rows, columns = grid_of(kind, image.size)
        resized = pixels(image.resize((columns * SIDE, rows * SIDE), 3))
        expected = resized.unflatten(1, (rows, SIDE)).unflatten(3, (columns, SIDE)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    if kind == "split":
        whole = F.interpolate(resized[None], (SIDE, SIDE), mode="bilinear", antialias=True)
        torch.testing.assert_close(views[:1], whole, atol=1.5 / 255, rtol=0)
        views = views[1:]
    assert torch.equal(views, expected)
    assert (spec.preprocessing.mean, spec.preprocessing.std) == ((0, 0, 0), (1, 1, 1))


def pixels(image):
    """float[3, H, W] from 0 to 1, as torchvision's `ToTensor` gives them."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255


def test_a_conversation_of_text(published, imported):
    tokenizer = open_tokenizer(published[0], IMAGE_ONLY)
    messages = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Count.")]
    messages = [{"role": role, "content": text} for role, text in messages]
    for chat in (messages, messages[1:]):
        expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert imported[1].render(chat, (), add_generation_prompt=True).input_ids == expected


def test_twenty_steps_of_training(published, make_image):
    model, processor = import_model(published[0])
    assert_learns(model, processor, [make_image(number, *size) for number, size in enumerate(list(SIZES)[:3])])


def test_it_is_saved_and_opened_again(published, imported, tmp_path):
    """With one tensor for tied weights, of which nanoVLM keeps the head."""
    is_tied = imported[0].config.tie_word_embeddings
    state = load_file(published[0] / "model.safetensors")
    assert ("decoder.token_embedding.weight" in state) != is_tied
    save_assistant(*imported, tmp_path / "model")
    again = load_assistant(tmp_path / "model")[0].state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in imported[0].state_dict().items())


def test_its_language_model_for_another_assistant(published, imported):
    language = language_of_assistant(str(published[0]), "")
    expected = imported[0].language_model.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in language.model.state_dict().items())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    make_nanovlm(folder, **SPLIT)
    return folder


@pytest.fixture
def copy(files, tmp_path):
    for file in files.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def change(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit_cls_flag": True}, "vit_cls_flag True, expected False"),
        ({"lm_attn_scaling": 2.0, "lm_dropout": 0.1}, r"lm_dropout 0\.1, expected 0\.0; lm_attn_scaling 2\.0"),
        ({"lm_use_tokens": True}, "lm_use_tokens True"),
        ({"mp_kind": "mlp", "vision_backend": "x"}, "versions do not have: mp_kind, vision_backend; remove them"),
        ({"vlm_extra_tokens": None}, r"no image_token .*: it is of nanoVLM's first version"),
        ({"lm_chat_template": JINJA.replace("im_end", "end")}, "lm_chat_template of .* is not the one"),
        ({"lm_chat_template": None}, "lm_chat_template of .* is not the one"),
        ({"mp_image_token_length": 9}, "mp_image_token_length 9, but the model makes 4 features"),
        ({"max_img_size": 90}, "max_img_size 90, which is not a multiple of vit_img_size 28"),
        ({"max_img_size": 4 * SIDE}, r"up to 4 x 4 tiles, but its vlm_extra_tokens lack r1c4, .*r4c4"),
        ({"vlm_extra_tokens": TOKENS | {"r2c1": "<r2>"}}, "the token r2c1 is '<r2>'; expected .*<row_1_col_1>"),
        ({"lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct"}, "--tokenizer HuggingFaceTB/SmolLM2-360M-Instruct"),
        ({"lm_vocab_size": 300}, r"it has \d+ tokens with those of images, and the model has 300 embeddings"),
        ({"lm_re_base": None}, "config.json does not say lm_re_base"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(copy, changes, message):
    change(copy, **changes)
    with pytest.raises(UserError, match=message):
        import_model(copy)


def test_a_tokenizer_that_is_named(copy, files):
    change(copy, lm_tokenizer="HuggingFaceTB/SmolLM2-360M-Instruct")
    _, processor = import_model(copy, tokenizer=str(files / "tokenizer"))
    assert processor.tokenizer.convert_tokens_to_ids("<row_3_col_3>") == len(processor.tokenizer) - 1


def test_loading_is_strict(copy):
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    save_file({key: t for key, t in state.items() if key != "MP.proj.weight"}, copy / "model.safetensors")
    with pytest.raises(UserError, match="does not hold an assistant of a known format"):
        import_model(copy)
    fused = "vision_encoder.blocks.1.attn.qkv_proj.bias"
    save_file({key: t for key, t in state.items() if key != fused}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: .*self_attn\.k_proj\.bias, .*self_attn\.v_proj\.bias$"):
        import_model(copy)
    save_file(state | {"decoder.extra": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"left over: decoder\.extra$"):
        import_model(copy)
    other = {"decoder.token_embedding.weight": state["decoder.head.weight"] + 1}
    save_file(state | other, copy / "model.safetensors")
    with pytest.raises(UserError, match="differs from the embeddings, but its config ties the two"):
        import_model(copy)
