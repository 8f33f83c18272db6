"""GGUF files in llama.cpp itself, which runs in an environment of its own (scripts/foreign/llamacpp.sh)."""

import os
import re
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from mmchat.conversion.card import write_card
from mmchat.conversion.checks import make_sample
from mmchat.conversion.formats.gguf import GGUF
from mmchat.conversion.gguf.check import compare_with_llamacpp, read_written, square_samples
from mmchat.conversion.gguf.llamacpp import PYTHON_VARIABLE, ask_llamacpp
from mmchat.vision.spec import HALF, Preprocessing
from tests.conversion.gguf_assistants import TOKENIZER_KINDS, make_assistant, make_tower
from tests.launching import ROOT

pytest.importorskip("gguf", reason="the extra [gguf] is not installed")

PAD = Preprocessing(HALF, HALF, "bicubic", "pad")
QWEN = {"language": "qwen2", "tokenizer": "qwen2", "template": "chatml"}


def tower(*arguments, **settings):
    return lambda: make_tower(*arguments, **settings)


SHAPES = {
    "mlp": {},
    "linear": {"projector": "linear"},
    "pixel shuffle": {"projector": "pixel_shuffle"},
    "average pool": {**QWEN, "projector": "avg_pool2_mlp2x_gelu"},
    "one slot": {"projector": "avg_pool4_mlp2x_gelu"},
    "inner layer, normed": {"tower": tower(layer=-2, final_norm=True)},
    "siglip2": {"tower": tower("siglip2", layer=1)},
    "siglip2 pixel shuffle": {"tower": tower("siglip2", final_norm=True), "projector": "pixel_shuffle"},
    "pad": {"tower": tower(preprocessing=PAD)},
    "clip pixel shuffle": {**QWEN, "tower": tower("clip_vit", layer=-2), "projector": "pixel_shuffle"},
    "internvit": {"tower": tower("internvit"), "projector": "pixel_shuffle"},
    "two heads": {"tower": tower(width=128), "head_dim": 32, "num_attention_heads": 4},
    "qwen2, tied": {**QWEN, "tie_word_embeddings": True},
    "gpt-2": {"language": "qwen2", "tokenizer": "gpt-2", "template": "human_assistant"},
    "legacy llama": {"tokenizer": "llama 2", "template": "llama_2"},
    "metaspace always": {"tokenizer": "metaspace always"},
    "white space is stripped": {**QWEN, "template": "vary_opt"},
    "f16": {"dtype": "f16"},
    "bf16": {"dtype": "bf16"},
    "q8_0": {**QWEN, "dtype": "q8_0", "tower": tower(backbone={"intermediate_size": 80})},
}


@pytest.fixture(scope="session")
def python():
    """An interpreter with xllamacpp."""
    named = os.environ.get(PYTHON_VARIABLE) or str(ROOT / ".venv-llamacpp" / "bin" / "python")
    if not Path(named).exists():
        pytest.skip(f"llama.cpp is not installed: run scripts/foreign/llamacpp.sh, or set {PYTHON_VARIABLE}")
    return named


def written(folder, parts, dtype=None, **options):
    parts = dict(parts)
    if "tower" in parts:
        parts["tower"] = parts["tower"]()
    pair = make_assistant(folder, **parts)
    target = GGUF(dtype, **options)
    assert target.refusals(pair[0].config, pair[1]) == []
    target.export(*pair).write(folder / "out")
    return pair, folder / "out"


@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_and_answers_are_the_same(python, tmp_path, monkeypatch, shape):
    monkeypatch.setenv(PYTHON_VARIABLE, python)
    parts = dict(SHAPES[shape])
    dtype = parts.pop("dtype", "f32")
    (model, processor), out = written(tmp_path, parts, dtype)
    samples = square_samples(model, processor)
    assert len({tuple(sample.answer) for sample in samples}) == len(samples)  # the images matter
    compared = GGUF().check(out, samples, processor)[0]
    assert compared.startswith("llama.cpp (xllamacpp ")
    if dtype == "f32":
        assert f"gives {len(samples)} of" in compared or f"gives {len(samples) - 1} of" in compared


@pytest.mark.parametrize("shape", ["mlp", "pixel shuffle"])
def test_the_code_of_the_card_runs(python, tmp_path, shape):
    (model, processor), out = written(tmp_path, SHAPES[shape], "f32")
    write_card(out, model, GGUF(), tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert ("image_min_tokens" in code) == (shape == "pixel shuffle")  # 4 slots: llama.cpp would resize the image
    sample = square_samples(model, processor)[0]
    sample.images[0].save(tmp_path / "image.png")
    code = code.replace("path/of/this/directory", str(out)) + "\nprint(answer['usage']['prompt_tokens'])"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *answer, prompt_tokens = done.stdout.rstrip("\n").split("\n")
    assert int(prompt_tokens) == sample.inputs["input_ids"].shape[1]
    # Its settings are llama.cpp's own: f16 in the key-value cache.
    clear = next(position for position, margin in enumerate([*sample.margins, 0]) if margin < 0.1)
    expected = processor.tokenizer.decode(sample.answer[:clear], skip_special_tokens=True).strip()
    assert expected
    assert "\n".join(answer).strip().startswith(expected)


@pytest.mark.parametrize(("shape", "sides"), [("mlp", (28, 112, 301)), ("internvit", (28,))])
def test_squares_of_other_sizes(python, tmp_path, shape, sides):
    (model, processor), out = written(tmp_path, SHAPES[shape])
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    images = [Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC) for side in sides]
    samples = [make_sample(model, processor, f"side {image.width}", [image], "What?") for image in images]
    compare_with_llamacpp(out, read_written(out), samples, processor, python)


def test_clip_is_misread_as_its_issue_says(python, tmp_path, monkeypatch):
    """Issue 25814: patches first, the class token last, but positions in the file's order, and the first row dropped.

    So keys, tensors and tokenizer are right. If this fails while `test_prompts_and_answers_are_the_same` passes,
    llama.cpp has been corrected.
    """
    parts = {"tower": tower("clip_vit", layer=-2)}
    (model, processor), out = written(tmp_path, parts, known_reader_bug=True)
    backbone = model.towers[0].backbone

    def misread(pixels):
        parts = backbone.embeddings
        patches = parts.patch_embedding(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([patches, parts.class_embedding.expand(len(patches), 1, -1)], dim=1)
        return backbone.pre_layrnorm(tokens + parts.position_embedding.weight), {"attention_mask": None}

    right = square_samples(model, processor)
    with pytest.raises(RuntimeError, match=r"llama\.cpp .* answers image 0 with token"):
        compare_with_llamacpp(out, read_written(out), right, processor, python)
    monkeypatch.setattr(model.towers[0], "embed", misread)
    compare_with_llamacpp(out, read_written(out), square_samples(model, processor), processor, python)


HARD = [
    *("", " ", "  two  spaces  ", " leading", "trailing ", "\n\n\n", "a\r\nb\tc", "\u2581under", "x\u00a0y\u200bz"),
    *(
        "don't WON'T we'll I'd",
        "3.14159 1234567 1,000",
        "日本語のテキスト",
        "Größe über ÄÖÜ",
        "naïve café",
        "🙂👍🏽 ok",
    ),
    *("def f(x):\n    return x ** 2  # ok", "a-b_c/d\\e", "$x^2_i \\alpha$", "...!!!???", "ab" * 40, "\u0301combining"),
]


def texts():
    """Paragraphs of the docs and hard strings. Angle brackets are replaced, so that nothing is a control token."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "guides").glob("*.md"))]
    paragraphs = [part for page in pages for part in page.split("\n\n") if part][:250]
    return [text.replace("<", "(") for text in (*HARD, *paragraphs)]


def as_the_template_writes(text, kind):
    """Text at the start of a prompt as `llamacpp_template` writes it."""
    if kind == "metaspace first":
        return text if not text or text.startswith((" ", "\u2581")) else f" {text}"
    return text.removeprefix(" ") if kind == "metaspace always" else text


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_tokenizers_agree(python, tmp_path, kind):
    language = "llama" if "llama" in TOKENIZER_KINDS[kind][0] else "qwen2"
    _, out = written(tmp_path, {"language": language, "tokenizer": kind, "template": "human_assistant"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    asked = texts()
    if kind == "qwen2":
        asked = [unicodedata.normalize("NFC", text) for text in asked]
    found = ask_llamacpp(python, out, [], 1, 64, texts=[as_the_template_writes(text, kind) for text in asked])["texts"]
    expected = [tokenizer(text).input_ids for text in asked]
    different = [text for text, ours, theirs in zip(asked, expected, found, strict=True) if ours != theirs]
    # Of this kind llama.cpp has no way to write a lone space, or a typed U+2581 at the start, only once.
    assert different == ([" ", "\u2581under"] if kind == "metaspace always" else [])
    assert len(asked) > 200
