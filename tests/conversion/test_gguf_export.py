"""`mmchat export --to gguf`: what is refused, what is said, and the chat template that a file holds."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from jinja2 import Template
from transformers import AutoTokenizer

from mmchat.cli.main import main
from mmchat.conversation import TEMPLATES, SlotTokens
from mmchat.conversion import export_model, foreign_python
from mmchat.conversion.chat_requests import as_request
from mmchat.conversion.checks import Sample
from mmchat.conversion.formats.gguf import GGUF, READER_BUG, notes
from mmchat.conversion.gguf import llamacpp
from mmchat.conversion.gguf.chat_template import llamacpp_template, plain_escapes
from mmchat.conversion.gguf.check import WrittenFiles, refuse_other_prompt
from mmchat.conversion.gguf.projectors import INTERNVL, JANUS_PRO, LFM2, MLP_TYPE
from mmchat.errors import UserError
from mmchat.model.directory import save_assistant
from mmchat.model.projectors import PROJECTORS
from mmchat.vision.spec import HALF, Preprocessing
from mmchat.vision.transforms.tiling import Tiling
from tests.conversation.conftest import PLAIN_JINJA, WRITTEN
from tests.conversion.gguf_assistants import make_assistant, make_tokenizer, make_tower, with_template

# What is refused


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config that is not refused. Change a copy."""
    model, _ = make_assistant(tmp_path_factory.mktemp("assistant"))
    assert GGUF().refusals(model.config) == []
    return model.config


def changed(config, text=None, tower=None, preprocessing=None, **values):
    copy = type(config)(**{**config.to_dict(), **values})
    for key, value in (text or {}).items():
        setattr(copy.text_config, key, value)
    how = {**copy.towers[0]["preprocessing"], **(preprocessing or {})}
    copy.towers = [{**copy.towers[0], **(tower or {}), "preprocessing": how}, *copy.towers[1:]]
    return copy


def backbone(family, **keys):
    return make_tower(family, backbone=keys).config.to_dict()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": {"model_type": "opt"}}, "its language model is opt; expected llama or qwen2"),
        ({"text": {"hidden_act": "gelu"}}, "its language model's hidden_act is gelu"),
        ({"text": {"attention_bias": True}}, "a Llama with biases"),
        ({"text": {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}}, "rotary positions of type"),
        ({"tower": {"family": "dinov2"}}, "its tower is a dinov2"),
        ({"tower": {"layer": (-1, -2)}}, "those of several layers"),
        ({"tower": {"layer": 0}}, "which no block computes"),
        ({"tower": backbone("siglip", hidden_act="relu")}, "its tower's hidden_act is relu"),
        ({"tower": {**backbone("clip_vit"), "class_token": True}}, "keeps the class token"),
        ({"tower": backbone("clip_vit")}, READER_BUG[:40]),
        ({"tower": backbone("internvit", use_qk_norm=True), "projectors": ["pixel_shuffle"]}, "use_qk_norm True"),
        ({"tower": backbone("internvit")}, "no projector for mlp2x_gelu on a internvit"),
        ({"preprocessing": {"fit": "tiles", "tiling": Tiling()}}, "its fit is tiles"),
        ({"tower": backbone("siglip2"), "preprocessing": {"fit": "native"}}, "its fit is native"),
        ({"preprocessing": {"fit": "shortest-edge-crop", "crop_fraction": 0.5}}, "cropped to 0.5"),
        ({"projectors": ["mlp3x_gelu"]}, "no projector for mlp3x_gelu on a siglip"),
        ({"projectors": ["resampler4"]}, "no projector for resampler4 on a siglip"),
        ({"projectors": ["pixel_shuffle_2d"]}, "no projector for pixel_shuffle_2d on a siglip"),
        (
            {"tower": {**backbone("clip_vit"), "final_norm": True}, "projectors": ["pixel_shuffle"]},
            "features are normed",
        ),
        (
            {"projectors": ["pixel_shuffle"], "slots": SlotTokens("<imgpad>").to_dict()},
            "no tokens around",
        ),
    ],
)
def test_one_reason(config, changes, reason):
    (found,) = GGUF().refusals(changed(config, **changes))
    assert reason in found


def test_margins_of_a_tower_are_refused_where_images_are_resized(config):
    tower = make_tower(size=60).config.to_dict()  # 56 pixels are seen
    assert GGUF().refusals(changed(config, tower=tower)) == []
    (reason,) = GGUF().refusals(changed(config, tower=tower, projectors=["pixel_shuffle"]))
    assert "image size 60 is not a multiple of 28 pixels" in reason


def test_sliding_attention_is_refused(tmp_path):
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    model, processor = make_assistant(tmp_path, "qwen2", "qwen2", "chatml", **sliding)
    (reason,) = GGUF().refusals(model.config, processor)
    assert "sliding_attention" in reason


def test_templates_that_refuse_text_alone_are_refused(tmp_path):
    model, processor = make_assistant(tmp_path, template="plain")
    (reason,) = GGUF().refusals(model.config, processor)
    assert reason.startswith("its template plain refuses a conversation of text alone (this template takes one user")


def test_every_reason_is_given(config):
    many = changed(config, text={"hidden_act": "gelu"}, projectors=["mlp3x_gelu"])
    assert len(GGUF().refusals(many)) == 2
    two = changed(config, towers=config.towers * 2, projectors=["linear"] * 2, text={"model_type": "opt"})
    assert GGUF().refusals(two)[0] == "it has 2 vision towers, expected 1" and len(GGUF().refusals(two)) == 2


def test_projectors_that_can_be_written(config):
    """Each kind has been decided about."""
    names = {"linear", "mlp{n}x_gelu", "pixel_shuffle", "pixel_shuffle_2d", "pixel_shuffle{n}_linear"}
    names |= {"avg_pool{n}_mlp2x_gelu", "resampler{n}"}
    assert PROJECTORS.keys() == names
    able = [name for name in names if not GGUF().refusals(changed(config, projectors=[name.replace("{n}", "4")]))]
    assert set(able) == {"linear", "pixel_shuffle", "avg_pool{n}_mlp2x_gelu"}  # mlp4x_gelu is too deep


# The command


@pytest.fixture
def without_llamacpp(monkeypatch):
    monkeypatch.delenv(llamacpp.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(foreign_python, "installed", lambda module: False)


def test_the_command_writes_two_files_and_says_what_was_not_compared(tmp_path, without_llamacpp, capsys):
    pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
    save_assistant(*make_assistant(tmp_path), tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), "--to", "gguf", "--dtype", "q8_0", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "mmproj.gguf", "model.gguf"]
    first, compared, images = capsys.readouterr().out.splitlines()[-3:]
    assert first.endswith("out: GGUF for llama.cpp")
    assert "not compared: xllamacpp is not installed; MMCHAT_LLAMACPP_PYTHON may name" in compared
    assert "square images are seen as in mmchat" in images


def test_a_class_token_needs_an_option(tmp_path, without_llamacpp):
    pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
    save_assistant(*make_assistant(tmp_path, tower=make_tower("clip_vit")), tmp_path / "model")
    with pytest.raises(UserError, match=r"issue 25814 .* --known-reader-bug writes"):
        export_model(tmp_path / "model", "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    lines = export_model(tmp_path / "model", "gguf", tmp_path / "out", known_reader_bug=True)
    assert lines[1] == f"not compared: {READER_BUG}"


def test_unknown_dtypes_are_refused(tmp_path):
    with pytest.raises(UserError, match="dtype 'q4' is unknown; expected one of f32, f16, bf16, q8_0"):
        GGUF("q4")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"gguf is not installed; run pip install 'mmchat\[gguf\]'"):
        GGUF().export(*make_assistant(tmp_path))


# What is said


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return make_assistant(tmp_path_factory.mktemp("assistant"))[1]


def lines_of(processor, projector, tokens=16, **preprocessing):
    (spec,) = processor.image_processor.specs
    other = replace(spec, preprocessing=Preprocessing(HALF, HALF, **preprocessing))
    copy = with_template(processor, processor.template)
    copy.image_processor = type(processor.image_processor)([other.to_dict()])
    copy.image_tokens = tokens
    return notes(WrittenFiles("f32", [2], projector, False), copy)


def test_notes(processor):
    (line,) = lines_of(processor, MLP_TYPE, resample="bicubic", fit="squash")
    assert line.startswith("square images are seen as in mmchat;") and line.endswith("(fit here: squash)")
    (line,) = lines_of(processor, JANUS_PRO, resample="bilinear", fit="pad")
    assert line.startswith("images of 56 x 56 pixels are seen as in mmchat;")
    (line,) = lines_of(processor, INTERNVL, tokens=4, resample="bicubic", fit="squash")
    assert line.startswith("square images of at most 56 x 56 pixels")
    assert len(lines_of(processor, LFM2, tokens=64)) == len(lines_of(processor, LFM2, tokens=256)) == 1
    first, second = lines_of(processor, LFM2, tokens=4)
    assert first.startswith("images of 56 x 56 pixels")
    assert second == "start llama.cpp with --image-min-tokens 4 --image-max-tokens 4"


# The chat template


MARKER = "<__media_Xb1Q__>"


def joined(message):
    """What llama.cpp hands to a template: a marker for each image, in one string."""
    if isinstance(message["content"], str):
        return message
    parts = (MARKER if part["type"] == "image" else part["text"] for part in message["content"])
    return {**message, "content": "".join(parts)}


def prompt_ids(text, words, bos):
    """llama.cpp's tokens of a prompt, without those of images.

    Args:
        words: llama.cpp's tokenizer.
    """
    text = text.removeprefix(bos)
    pieces = [words(piece, add_special_tokens=False).input_ids for piece in text.split(MARKER)]
    return [token for ids in pieces for token in ids]


LLAMACPP_KIND = {"metaspace first": "metaspace never", "metaspace always": "llama 2"}
"""Tokenizer -> the one that llama.cpp has for it, if that is another."""
IMAGE, QUESTION = {"type": "image"}, {"type": "text", "text": "\nWhat is this?"}
CONVERSATIONS = [
    [{"role": "user", "content": [IMAGE, QUESTION]}],
    [{"role": "user", "content": [IMAGE, {"type": "text", "text": "and"}, IMAGE, QUESTION]}],
    [{"role": "user", "content": "No image."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, IMAGE]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ],
]


@pytest.mark.parametrize("writes_slots", [True, False])
@pytest.mark.parametrize("kind", ["metaspace first", "metaspace always", "llama 2", "qwen2"])
def test_the_template_gives_the_prompt_of_training(tmp_path, processor, kind, writes_slots):
    tokenizer, words = (
        AutoTokenizer.from_pretrained(make_tokenizer(name, tmp_path / name))
        for name in (kind, LLAMACPP_KIND.get(kind, kind))
    )
    for one in (tokenizer, words):
        one.add_tokens(["<imgpad>", "<img>", "</img>", *WRITTEN], special_tokens=True)
    tokenizer.chat_template = PLAIN_JINJA
    compared = 0
    for name in TEMPLATES:
        if kind == "qwen2" and name == "llama_2":
            continue  # it needs a BOS
        trained = with_template(processor, name, tokenizer)
        jinja = llamacpp_template(trained, writes_slots)
        hidden = {"<imgpad>"} if writes_slots else {"<imgpad>", "<img>", "</img>"}
        hidden = set(tokenizer.convert_tokens_to_ids(list(hidden)))
        for messages in CONVERSATIONS:
            try:
                expected = trained.render(messages, add_generation_prompt=True).input_ids
            except UserError:
                continue  # not of this template's form
            text = tokenizer.apply_chat_template(
                [joined(message) for message in messages],
                chat_template=jinja,
                tokenize=False,
                add_generation_prompt=True,
            )
            images = str(messages).count("'image'")
            assert text.count(MARKER) == images
            bos = tokenizer.bos_token or ""
            prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            found = prefix + prompt_ids(text, words, bos)
            assert found == [token for token in expected if token not in hidden], (name, text)
            compared += 1
    assert compared > 2 * len(TEMPLATES)


def test_llamacpps_jinja_has_no_numeric_escapes():
    source = r"""{{- "a\u000bb\u0022c\\u000bd\n" -}}"""
    plain = plain_escapes(source)
    assert plain == '{{- "a\x0bb' + r"\u0022c\\u000bd\n" + '" -}}'
    assert Template(plain).render() == Template(source).render() == 'a\x0bb"c\\u000bd\n'


# llama.cpp as a program


def test_an_interpreter_without_xllamacpp_is_refused(monkeypatch):
    monkeypatch.setenv(llamacpp.PYTHON_VARIABLE, "/no/such/python")
    with pytest.raises(UserError, match="MMCHAT_LLAMACPP_PYTHON is /no/such/python, which cannot be run"):
        llamacpp.find_python()
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(llamacpp.subprocess, "run", lambda *arguments, **options: failed)
    monkeypatch.setenv(llamacpp.PYTHON_VARIABLE, sys.executable)
    with pytest.raises(UserError, match=r"which cannot import xllamacpp; .* makes an environment"):
        llamacpp.find_python()


def test_files_that_cannot_be_read_are_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"^llama\.cpp cannot use the files in"):
        llamacpp.ask_llamacpp("false", tmp_path, [], 1, 1)


def sample(processor, ids):
    return Sample("image 0", [], [], {"input_ids": torch.tensor([ids])}, torch.zeros(1), [], [])


def test_another_prompt_is_refused(processor):
    start, pad, end = processor.tokenizer.convert_tokens_to_ids(["<img>", "<imgpad>", "</img>"])
    ids = [1, 5, start, pad, pad, end, 6]
    asked = sample(processor, ids)
    refuse_other_prompt(asked, {"prompt": [1, 5, start, end, 6], "prompt_tokens": 7}, processor, MLP_TYPE)
    refuse_other_prompt(asked, {"prompt": [1, 5, 6], "prompt_tokens": 7}, processor, LFM2)
    for tokens, count in (([1, 5, start, end, 7], 7), ([1, 5, start, end, 6], 8)):
        with pytest.raises(RuntimeError, match=rf"prompt for image 0 has {count} tokens, expected 7"):
            refuse_other_prompt(asked, {"prompt": tokens, "prompt_tokens": count}, processor, MLP_TYPE)


def test_requests_hold_images_in_order(make_image):
    images = [make_image(seed, 4, 4) for seed in range(2)]
    content = [IMAGE, {"type": "text", "text": "a"}, IMAGE]
    request = as_request([{"role": "user", "content": content}], images)
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    assert urls == [f"data:image/png;base64,{data}" for data in request["images"]]
    assert len(set(urls)) == 2
