"""`--check vllm` around a stand-in of vLLM: what is refused, and what a difference raises. vLLM: test_vllm.py."""

import json
import sys

import pytest
from safetensors.torch import save_file

from mmchat.cli.main import main
from mmchat.conversion import checks, export_model, foreign_python
from mmchat.conversion.vllm import check, vllm_process
from mmchat.errors import UserError
from mmchat.model.directory import load_assistant, save_assistant
from mmchat.vision import LLAVA_ONEVISION
from mmchat.vision.spec import Preprocessing

PROGRAM = """
import json, shutil, sys
request = json.load(sys.stdin)
json.dump(request, open("request.json", "w"))
shutil.copy("made.safetensors", request["inputs"])
print(open("reply.json").read())
"""


@pytest.fixture(scope="module")
def assistant(assistant_dir):
    return load_assistant(assistant_dir)


@pytest.fixture(scope="module")
def samples(assistant):
    return checks.reference_samples(*assistant)


@pytest.fixture
def vllm(assistant, samples, tmp_path, monkeypatch):
    """A stand-in that answers as mmchat does: (its reply, its inputs, compare() after both were changed)."""
    answers = [{"prompt": one.inputs["input_ids"][0].tolist(), "tokens": list(one.answer)} for one in samples]
    reply = {"version": "9", "processor": "LlavaProcessor of transformers 9", "answers": answers}
    made = {f"{n}.{key}": value for n, one in enumerate(samples) for key, value in one.inputs.items()}
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(vllm_process, "PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(check, "load_class", lambda directory, name: assistant[0])  # nothing was exported
    monkeypatch.chdir(tmp_path)

    def compare(processor):
        (tmp_path / "reply.json").write_text(json.dumps(reply))
        save_file({key: value.contiguous().clone() for key, value in made.items()}, tmp_path / "made.safetensors")
        return check.compare_with_vllm(sys.executable, tmp_path, samples, processor, "LlavaForConditionalGeneration")

    return reply, made, compare


def test_equal_answers(vllm, assistant, samples, tmp_path):
    lines = vllm[2](assistant[1])
    assert lines == [
        "LlavaProcessor of transformers 9, in vLLM's environment: equal token ids, and equal pixels but for rounding",
        "vLLM 9 gives 4 of 4 answers of 32 greedy tokens",
    ]
    request = json.loads((tmp_path / "request.json").read_text())
    assert request["images"] == 2 and request["max_tokens"] == 32
    assert request["context"] == max(sample.inputs["input_ids"].shape[1] for sample in samples) + 32
    parts = request["conversations"][1][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    assert [message["role"] for message in request["conversations"][3]] == ["user", "assistant", "user"]


def test_other_answers_prompts_and_pixels_are_refused(vllm, assistant, samples):
    reply, made, compare = vllm
    sure = next(n for n, margin in enumerate(samples[2].margins) if margin > check.TIE)
    reply["answers"][2]["tokens"][sure] += 1
    with pytest.raises(RuntimeError, match=f"vLLM 9 answers text with token .* at position {sure}"):
        compare(assistant[1])
    reply["answers"][1]["prompt"].pop()
    with pytest.raises(RuntimeError, match="vLLM 9's prompt for 2 images is"):
        compare(assistant[1])
    made["0.pixel_values"] = made["0.pixel_values"] + 0.1
    with pytest.raises(RuntimeError, match="makes other pixel_values for 1 image"):
        compare(assistant[1])


def test_an_answer_for_pixels_that_are_rounded_otherwise(vllm, assistant, samples):
    reply, made, compare = vllm
    pixels = made["0.pixel_values"].clone()
    pixels[0, :, 0, 0] += 15  # one of 784 pixels: the mean changes by less than is accepted
    answer = checks.answered_by(assistant[0], samples[0], {**samples[0].inputs, "pixel_values": pixels}).answer
    assert answer != samples[0].answer
    reply["answers"][0]["tokens"] = answer
    with pytest.raises(RuntimeError, match="vLLM 9 answers 1 image with token"):
        compare(assistant[1])
    made["0.pixel_values"] = pixels
    expected = "vLLM 9 gives 4 of 4 answers of 32 greedy tokens, 1 compared for the pixels of its own processor"
    assert compare(assistant[1])[1].startswith(expected)


def test_several_images_of_onevision_are_not_compared(vllm, assistant, make_assistant, make_tower):
    reply, _, compare = vllm
    reply["answers"][1]["tokens"][0] += 1
    tower = make_tower(preprocessing=Preprocessing(fit="anyres", tiling=LLAVA_ONEVISION))
    lines = compare(make_assistant(towers=[tower])[1])
    assert "gives 3 of 3 answers" in lines[1] and lines[2].startswith("answers to several images were NOT compared")


def test_a_vllm_that_fails_is_shown(monkeypatch, tmp_path):
    (tmp_path / "program.py").write_text("raise SystemExit('no room for the KV cache')")
    monkeypatch.setattr(vllm_process, "PROGRAM", tmp_path / "program.py")
    with pytest.raises(UserError, match=r"does not answer from what was exported; .* no room for the KV cache"):
        vllm_process.ask_vllm(sys.executable, tmp_path, [], 1, 1, 1)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (
            None,
            "error: vLLM is not installed here; set MMCHAT_VLLM_PYTHON to an interpreter that has it (in a checkout",
        ),
        (sys.executable, f"error: MMCHAT_VLLM_PYTHON is {sys.executable}, which cannot import vllm; in a checkout of"),
        ("/no/python", "error: MMCHAT_VLLM_PYTHON is /no/python, which cannot be run:"),
    ],
)
def test_without_vllm_nothing_is_written(python, message, assistant_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(vllm_process.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(foreign_python, "installed", lambda module: False)
    if python:
        monkeypatch.setenv(vllm_process.PYTHON_VARIABLE, python)
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(assistant_dir), "--to", "hf", "--check", "vllm", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(message) and not list(tmp_path.iterdir())


def test_what_vllm_cannot_open_is_refused(make_assistant, make_tower, assistant_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("mmchat.conversion.exporting.require_python", lambda: "python")
    with pytest.raises(UserError, match="`--check vllm` is for what vLLM opens: `--to hf`"):
        export_model(assistant_dir, "gguf", tmp_path / "out", check="vllm")
    with pytest.raises(UserError, match="there is no check 'tgi'; expected vllm"):
        export_model(assistant_dir, "hf", tmp_path / "out", check="tgi")
    save_assistant(*make_assistant(towers=[make_tower(layer=(-2, -3))]), tmp_path / "ours")
    with pytest.raises(UserError, match=r"vLLM cannot open .*: its features are those of several layers, \(-2, -3\)"):
        export_model(tmp_path / "ours", "hf", tmp_path / "out", check="vllm")
    assert not (tmp_path / "out").exists()
    for kind, refused in (("qwen2", True), ("llama", False)):
        config = make_assistant(kind)[0].config
        found = check.vllm_refusals(config, "Idefics3ForConditionalGeneration")
        assert (
            any("runs every language model as a Llama, and this one is qwen2" in reason for reason in found) == refused
        )
        assert check.vllm_refusals(config, "LlavaForConditionalGeneration") == []
