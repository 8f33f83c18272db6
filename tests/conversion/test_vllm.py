"""Exports in vLLM itself, which runs in an environment of its own (scripts/foreign/vllm.sh)."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from mmchat.conversion import export_model
from mmchat.conversion.card import write_card
from mmchat.conversion.formats import TARGETS
from mmchat.conversion.gguf.check import square_samples
from mmchat.conversion.vllm.vllm_process import PYTHON_VARIABLE
from mmchat.model.directory import save_assistant
from mmchat.vision import LLAVA_ONEVISION
from mmchat.vision.spec import Preprocessing
from tests.conversion.gguf_assistants import make_assistant, make_tower
from tests.launching import ROOT

pytestmark = pytest.mark.slow
QWEN = {"language": "qwen2", "tokenizer": "qwen2", "template": "chatml"}


def tower(family, fit="squash", tiling=None, **settings):
    """A function that makes a tower of heads of 64 and 16 patches."""
    return lambda: make_tower(
        family, preprocessing=Preprocessing(fit=fit, tiling=tiling, resample="bicubic"), **settings
    )


SHAPES = {
    "llava": {"tower": tower("clip_vit", "shortest-edge-crop", layer=-2)},
    "llava, SigLIP, linear": {**QWEN, "tower": tower("siglip"), "projector": "linear"},
    "llava, pad": {"tower": tower("clip_vit", "pad", layer=-2, class_token=True)},
    "llava-next": {"tower": tower("clip_vit", "anyres", layer=-2)},
    "llava-onevision": {**QWEN, "tower": tower("siglip", "anyres", LLAVA_ONEVISION)},
    "idefics3": {"tower": tower("siglip", "split", final_norm=True), "projector": "pixel_shuffle2_linear"},
    "internvl": {**QWEN, "tower": tower("internvit"), "projector": "pixel_shuffle"},
    "internvl, tiles": {**QWEN, "tower": tower("internvit", "tiles"), "projector": "pixel_shuffle"},
}
"""Target and variant -> parts of the assistant."""


@pytest.fixture(scope="module")
def python():
    """An interpreter with vLLM."""
    named = os.environ.get(PYTHON_VARIABLE) or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not Path(named).exists():
        pytest.skip(f"vLLM is not installed: run scripts/foreign/vllm.sh, or set {PYTHON_VARIABLE}")
    return named


@pytest.mark.parametrize("shape", SHAPES)
def test_processor_prompts_and_answers_are_the_same(python, tmp_path, monkeypatch, shape):
    monkeypatch.setenv(PYTHON_VARIABLE, python)
    parts = {**SHAPES[shape], "tower": SHAPES[shape]["tower"](), "max_position_embeddings": 4096}
    save_assistant(*make_assistant(tmp_path, **parts), tmp_path / "ours")
    lines = export_model(tmp_path / "ours", "hf", tmp_path / "out", check="vllm")
    processor, answers = next(
        (lines[n], lines[n + 1]) for n, line in enumerate(lines) if "in vLLM's environment" in line
    )
    assert "Processor of transformers " in processor and "equal token ids" in processor
    assert re.match(r"vLLM \S+ gives [34] of [34] answers of 32 greedy tokens", answers)


@pytest.mark.parametrize("shape", ["llava-onevision", "internvl"])
def test_the_code_of_the_card_runs(python, tmp_path, shape):
    """Their processors need torchvision, so the code of the card is run here."""
    model, processor = make_assistant(tmp_path, **{**SHAPES[shape], "tower": SHAPES[shape]["tower"]()})
    target = next(target for target in TARGETS if target.name == shape)
    target.export(model, processor).write(tmp_path / "out")
    write_card(tmp_path / "out", model, target, tmp_path)
    sample = square_samples(model, processor)[0]
    sample.images[0].save(tmp_path / "image.png")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    code = code.replace("path/of/this/directory", str(tmp_path / "out")) + "\nprint(inputs['input_ids'].tolist())"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == sample.inputs["input_ids"].tolist()
