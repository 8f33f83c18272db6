"""Captions by vLLM: around a stand-in of its program, and in vLLM itself (slow)."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from mmchat.conversion import export_model
from mmchat.conversion.vllm.vllm_process import PYTHON_VARIABLE
from mmchat.errors import UserError
from mmchat.images import load_image
from mmchat.inference.captioning import CaptionTask
from mmchat.inference.jobs import vllm_model
from mmchat.inference.jobs.dispatch import dispatch
from mmchat.inference.jobs.items import Item
from mmchat.inference.jobs.vllm_model import VllmEndedError, VllmModel
from mmchat.inference.jobs.workers import ThreadWorker
from tests.inference.jobs.test_kills import Job, check
from tests.launching import ROOT

STAND_IN = """
import base64, io, json, sys
from PIL import Image

header = json.loads(sys.stdin.readline())
if header["model"] == "nowhere":
    sys.exit("there is no such model")
print(json.dumps({"ready": True}), flush=True)
requests = []
for line in sys.stdin:
    requests.append(json.loads(line))
    if len(requests) < 2:
        continue  # answers in another order
    for request in reversed(requests):
        image = Image.open(io.BytesIO(base64.b64decode(request["images"][0])))
        prompt = request["messages"][0]["content"][1]["text"]
        assert request["repeats"] == 8
        if image.width == 13:
            sys.exit("out of memory")
        answer = {"text": f" {prompt} {image.width}", "tokens": [1, 2], "reason": "end"}
        answer = {"error": "too long"} if image.width == 12 else answer
        print(json.dumps({"id": request["id"], **answer}), flush=True)
    requests = []
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(STAND_IN)
    monkeypatch.setattr(vllm_model, "PROGRAM", tmp_path / "program.py")


def images(tmp_path, make_image, *widths):
    found = []
    for width in widths:
        make_image(0, width).save(tmp_path / f"{width}.png")
        found.append(Item({"path": str(width)}, partial(load_image, tmp_path / f"{width}.png"), prompt="Width"))
    return found


def answers(items):
    with VllmModel(sys.executable, Path("model"), 2) as model:
        workers = dispatch(items, lambda events: [ThreadWorker(model, CaptionTask(9), 2, events)])
        return {item.key["path"]: outcome for item, outcome in workers}


def test_answers_belong_to_their_requests(stand_in, tmp_path, make_image):
    found = answers(images(tmp_path, make_image, 10, 11, 12, 14))
    assert {name: outcome.answer for name, outcome in found.items()} == {
        **{name: {"caption": f"Width {name}"} for name in ("10", "11", "14")},
        "12": {"error": "too long"},
    }
    assert found["10"].tokens == 2


def test_the_end_of_vllm_is_the_end_of_the_job(stand_in, tmp_path, make_image):
    with pytest.raises(VllmEndedError, match="vLLM has ended; its last lines: out of memory"):
        answers(images(tmp_path, make_image, 13, 14))


def test_a_directory_that_vllm_does_not_open(stand_in):
    with pytest.raises(UserError, match=r"vLLM does not open nowhere, which must be .*; its last lines: there is no"):
        VllmModel(sys.executable, Path("nowhere"), 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_itself_gives_the_captions_of_mmchat(tmp_path, make_image, monkeypatch):
    from tests.conversion.test_vllm import SHAPES, make_assistant, save_assistant

    python = os.environ.get(PYTHON_VARIABLE) or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not Path(python).exists():
        pytest.skip(f"vLLM is not installed: run scripts/foreign/vllm.sh, or set {PYTHON_VARIABLE}")
    monkeypatch.setenv(PYTHON_VARIABLE, python)
    shape = SHAPES["llava, SigLIP, linear"]
    parts = {**shape, "tower": shape["tower"](), "max_position_embeddings": 4096}
    model, processor = make_assistant(tmp_path, **parts)
    save_assistant(model, processor, tmp_path / "ours")
    export_model(tmp_path / "ours", "hf", tmp_path / "out")
    (folder := tmp_path / "images").mkdir()
    side = processor.image_processor.specs[0].image_size  # nothing is resized, so no pixel is rounded otherwise
    for number in range(20):
        make_image(number, side, side).save(folder / f"{number:02}.png")
    (folder / "05.png").write_bytes(b"")
    captions = []
    for model, engine in (("out", "vllm"), ("ours", "mmchat")):
        out = tmp_path / f"{engine}.jsonl"
        arguments = ["--out", out, "--max-new-tokens", 6, "--batch-size", 8, "--dtype", "float32", "--engine", engine]
        Job(["mmchat.cli.main", "caption", tmp_path / model, folder, *arguments], out).finish()
        lines = check(out, folder, bad=1)
        # vLLM drops a character that is incomplete where the text is cut.
        captions.append({line["path"]: line.get("caption", "").rstrip("\ufffd") for line in lines})
    assert captions[0] == captions[1]
