"""Idefics3 and SmolVLM in transformers' layout: import, training, export and the way back, judged by transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from mmchat.conversation import SlotTokens
from mmchat.conversion import export_model, import_model
from mmchat.conversion.formats.idefics3 import position_rows
from mmchat.conversion.formats.idefics3_export import POOLING, Idefics3Target
from mmchat.errors import UserError
from mmchat.model.assembly import assemble
from mmchat.model.directory import save_assistant
from mmchat.vision import NANOVLM_MARKERS, Split, TowerConfig, build_tower
from mmchat.vision.spec import HALF, Preprocessing
from tests.conftest import DATA, TOKENIZER_OF
from tests.conversion.hf_models import spread
from tests.conversion.idefics3_models import CLASSES, END, JINJA, PATCH, SIDE, VISION, foreign_inputs, make_idefics3
from tests.conversion.internvl_models import image_of

TOLERANCE = {"atol": 1e-4, "rtol": 0}
SIZES = {(30, 30): 10, (90, 28): 4, (28, 90): 4, (200, 130): 7, (5, 60): 4}
"""Size of an image -> its views, if the longer side is resized to three tiles."""


@pytest.fixture(scope="module", params=CLASSES)
def published(request, tmp_path_factory):
    """(directory, kind, transformers' model)"""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, request.param, make_idefics3(folder, request.param, tied=request.param == "smolvlm")


def ours(processor, images, question="What is this?"):
    messages = [{"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]}]
    layouts = processor.layouts([image.size for image in images])
    ids = torch.tensor([processor.render(messages, layouts, add_generation_prompt=True).input_ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **processor.image_inputs([images])}


def compare(folder, kind, theirs, images, **processor):
    model, mine = import_model(folder)
    expected, inputs = foreign_inputs(folder, kind, theirs, images, **processor), ours(mine, images)
    assert inputs["input_ids"].tolist() == expected["input_ids"].tolist()
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"].flatten(0, 1), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, theirs(**expected).logits, **TOLERANCE)
    settings = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    settings["eos_token_id"] = model.generation_config.eos_token_id
    assert torch.equal(model.generate(**inputs, **settings), theirs.generate(**expected, **settings))
    return mine


@pytest.mark.parametrize("sizes", [[size] for size in SIZES] + [list(SIZES)[:2]], ids=str)
def test_logits_and_answers_of_transformers(published, sizes):
    folder, kind, theirs = published
    compare(folder, kind, theirs, [image_of(size) for size in sizes])


def test_images_that_are_not_split(published, tmp_path):
    kind, whole = published[1], {"do_image_splitting": False}
    theirs = make_idefics3(tmp_path, kind, processor=whole)
    processor = compare(tmp_path, kind, theirs, [image_of((90, 40)), image_of((20, 50))], **whole)
    assert processor.image_processor.specs[0].preprocessing.tiling.cut is False


def test_a_text_alone(published):
    folder, kind, _ = published
    _, processor = import_model(folder)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    messages = [{"role": "system", "content": "Be brief."}, *messages, {"role": "user", "content": "Count."}]
    ids = processor.render(messages, (), add_generation_prompt=True).input_ids
    parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    text = JINJA.replace("BOS", processor.tokenizer.bos_token)
    expected = processor.tokenizer.apply_chat_template(
        parts, chat_template=text, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert (processor.template, ids) == (kind, expected)


def test_positions_of_sides_where_rounding_gives_a_neighbour(tmp_path):
    """With 25 patches a side the class looks up other rows than patch by patch."""
    rows = position_rows(25 * 25)
    assert rows.tolist() != list(range(625)) and position_rows(26 * 26).tolist() == list(range(676))
    theirs = make_idefics3(
        tmp_path,
        vision={"image_size": 50, "patch_size": 2},
        scale_factor=5,
        processor=({"size": {"longest_edge": 50}, "max_image_size": {"longest_edge": 50}}),
    )
    model, processor = import_model(tmp_path)
    inputs = ours(processor, [image_of((60, 60))])
    with torch.no_grad():
        expected = theirs(**{**inputs, "pixel_values": inputs["pixel_values"][None]})
        torch.testing.assert_close(model(**inputs).logits, expected.logits, **TOLERANCE)


@pytest.mark.slow
def test_ten_steps_of_training(published):
    model, processor = import_model(published[0])
    messages = [{"from": "human", "value": "<image>What is this?"}, {"from": "gpt", "value": "A wide image."}]
    image = image_of((90, 40))
    rendered = processor.render(messages, processor.layouts([image.size]))
    labelled = [token for token in rendered.labels if token != -100]
    assert processor.tokenizer.decode(labelled) == f" A wide image.{END}"
    inputs = {"input_ids": torch.tensor([rendered.input_ids]), "labels": torch.tensor([rendered.labels])}
    inputs |= processor.image_inputs([[image]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        losses.append(model.train()(**inputs).loss)
        losses[-1].backward()
        assert model.projectors[0][1].weight.grad is not None
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 2


@pytest.fixture(scope="module")
def published_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    make_idefics3(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"image_token_id": 7}, r"<image> is \d+ instead of 7"),
        ("preprocessor_config.json", {"do_resize": False}, "turns do_resize off"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 56}}, "squares of 56 pixels, but .* has 28"),
        ("preprocessor_config.json", {"size": {"height": 9}}, "size .*, expected a longest_edge"),
        ("preprocessor_config.json", {"resample": 4}, "resampling filter 4; known are"),
        ("processor_config.json", {"image_seq_len": 9}, "image_seq_len 9, but the model makes 4 features"),
        ("chat_template.jinja", JINJA.replace("Assistant", "Bot"), "no template of mmchat writes"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(published_files, tmp_path, name, values, message):
    for file in published_files.iterdir():
        (tmp_path / file.name).symlink_to(file)
    path = tmp_path / name
    old = json.loads(path.read_text()) if path.suffix == ".json" else None
    path.unlink()
    path.write_text(values if isinstance(values, str) else json.dumps(old | values))
    with pytest.raises(UserError, match=message):
        import_model(tmp_path)


def test_a_directory_without_a_chat_template_is_refused(published_files, tmp_path):
    for file in published_files.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(UserError, match="has no chat template"):
        import_model(tmp_path)


def test_a_tokenizer_without_the_tokens_is_refused(published_files, data_dir):
    with pytest.raises(UserError, match="no token <fake_token_around_image>, <image>, which stands for or around"):
        import_model(published_files, tokenizer=str(data_dir / "tokenizers" / "qwen_like"))


@pytest.fixture(scope="module")
def exported(published, tmp_path_factory):
    """(imported, exported again, what was said)"""
    folder = tmp_path_factory.mktemp("exported")
    save_assistant(*import_model(published[0]), folder / "ours")
    return folder / "ours", folder / "out", export_model(folder / "ours", "hf", folder / "out")


def test_there_and_back_is_bit_identical(published, exported):
    lines = exported[2]
    assert lines[1].startswith(
        "Idefics3ForConditionalGeneration opened it: logits for 1 image, 2 images, text, 2 rounds"
    )
    assert lines[2].startswith("Idefics3Processor opened it: equal token ids")
    before, after = (load_file(folder / "model.safetensors") for folder in (published[0], exported[1]))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    first, second = (import_model(folder) for folder in (published[0], exported[1]))
    state = second[0].state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in first[0].state_dict().items())
    for name in ("template", "system", "slot_tokens"):
        assert getattr(first[1], name) == getattr(second[1], name)
    assert first[1].image_processor.specs == second[1].image_processor.specs


def test_the_processor_of_transformers_at_five_aspect_ratios(exported):
    theirs, ours_again = AutoProcessor.from_pretrained(exported[1]), import_model(exported[1])[1]
    for size in SIZES:
        content = [{"type": "image", "image": image_of(size)}, {"type": "text", "text": "What is this?"}]
        found = theirs.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        expected = ours(ours_again, [image_of(size)])
        assert found["input_ids"].tolist() == expected["input_ids"].tolist()
        assert torch.equal(found["pixel_values"][0], expected["pixel_values"])


@pytest.fixture(scope="module")
def assistant(language_json):
    def make(words="qwen2", slots=None, projector="pixel_shuffle2_linear", split=None, **tower):
        how = {"mean": HALF, "std": HALF, "fit": "split", "tiling": split or Split(3 * SIDE)}
        settings = {"final_norm": True, "preprocessing": Preprocessing(**how), **tower}
        config = TowerConfig("siglip", VISION | {"vision_use_head": False} | settings.pop("backbone", {}), **settings)
        return assemble(
            str(language_json("llama")),
            [build_tower(config)],
            projector,
            "vicuna_v1",
            tokenizer=str(DATA / "tokenizers" / TOKENIZER_OF[words]),
            slots=slots or SlotTokens("<imgpad>"),
        )

    return make


@pytest.mark.parametrize(
    ("words", "slots"),
    [("llama", SlotTokens("<imgpad>")), ("qwen2", SlotTokens("<imgpad>", "<img>", "</img>"))],
    ids=["llama", "qwen2"],
)
def test_an_assistant_made_here(assistant, tmp_path, words, slots):
    """Its image token is called `<image>`, as the processor's. Tokens around an image are the template's."""
    model, processor = assistant(words, slots)
    save_assistant(spread(model), processor, tmp_path / "model")
    lines = export_model(tmp_path / "model", "idefics3", tmp_path / "out")
    assert "logits for 1 image, 2 images, text, 2 rounds" in lines[1] and "equal token ids" in lines[2]
    again = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert again.convert_tokens_to_ids("<image>") == model.config.image_token_id
    assert "<imgpad>" not in again.get_vocab()


def test_a_pooling_head_is_left_out(assistant, tmp_path):
    """A SigLIP that was not taken from an assistant has one; the class has not."""
    model, processor = assistant(backbone={"vision_use_head": True})
    assert any(key.startswith(POOLING) for key in model.state_dict())
    save_assistant(spread(model), processor, tmp_path / "model")
    assert "greedy tokens equal" in export_model(tmp_path / "model", "idefics3", tmp_path / "out")[1]


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"projector": "mlp2x_gelu"}, ["its projector is mlp2x_gelu, expected pixel_shuffle{n}_linear"]),
        ({"final_norm": False, "layer": -2}, ["(final_norm), as the class does", "are of layer -2, expected the last"]),
        ({"preprocessing": Preprocessing(HALF, HALF, fit="squash")}, ["its fit is 'squash'", "no added token <fake"]),
        (
            {"split": Split(3 * SIDE, "nanovlm", global_view="first", markers=NANOVLM_MARKERS)},
            ["another rule, global_view or global_resample", "other markers, expected Markers", "no added token <fake"],
        ),
        (
            {"preprocessing": Preprocessing((0, 0, 0), (1, 1, 1), fit="split")},
            ["which the class takes for padding"],
        ),
        (
            {"backbone": {"image_size": 19 * PATCH}, "projector": "pixel_shuffle1_linear"},
            ["tower has 19 patches a side"],
        ),
    ],
    ids=str,
)
def test_what_the_class_cannot_express(assistant, changes, reasons):
    model, processor = assistant(**changes)
    found = Idefics3Target().refusals(model.config, processor)
    assert len(found) == len(reasons) and all(part in reason for part, reason in zip(reasons, found, strict=True))


def test_other_towers_and_tokens_are_refused(assistant, make_assistant, make_tower):
    model, _ = make_assistant(towers=[make_tower()], projector="pixel_shuffle2_linear")
    assert Idefics3Target().refusals(model.config) == ["its tower is a clip_vit, expected siglip"]
    model, processor = assistant()
    processor.tokenizer.add_tokens(["<image>"], special_tokens=True)
    assert Idefics3Target().refusals(model.config, processor) == [
        "its tokenizer has a token <image> beside its image token <imgpad>"
    ]
