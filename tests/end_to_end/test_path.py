"""The stages and configs of the quickstart with a few steps each, launched by their commands.

data -> tokenizer -> tower -> projector -> SFT -> evaluation -> captions -> report
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import ROOT, launch, launch_environment, metrics

BIN = Path(sys.executable).parent


def run(*words: object, cwd: Path) -> str:
    result = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=launch_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, f"{words}:\n{result.stdout}"
    return result.stdout


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """All stages, run once."""
    folder = tmp_path_factory.mktemp("path")
    configs, data = ROOT / "configs" / "quickstart", folder / "data"
    mmchat, python = BIN / "mmchat", sys.executable
    counts = (
        "--captions",
        80,
        "--statements",
        40,
        "--lookups",
        40,
        "--train",
        40,
        "--dev",
        8,
        "--named",
        10,
        "--heldout",
        6,
    )
    run(python, ROOT / "data_tools" / "digit_scenes.py", "--out", data, *counts, cwd=folder)
    texts = (data / "captions.json", data / "train.json")
    run(python, ROOT / "data_tools" / "train_tokenizer.py", *texts, "--out", folder / "tokenizer", cwd=folder)
    words = ("--tokenizer", folder / "tokenizer")
    clip = ("--vision", configs / "tower.json", "--text", configs / "text.json", "--pool", "max")
    run(mmchat, "clip", "init", *clip, *words, "--projection-dim", 128, "--out", folder / "tower-init", cwd=folder)

    def train(name: str, **overrides: object) -> None:
        words = [word for key, value in overrides.items() for word in (f"--{key.replace('__', '.')}", str(value))]
        result = launch(configs / f"{name}.yaml", "--batch_size", "8", *words)
        assert result.returncode == 0, result.stdout

    small = {"steps": 3, "optimizer__warmup": 1}
    captions = {"data__path": data / "captions.json", "objective__zero_shot__path": data / "named.json"}
    train("tower", run_dir=folder / "tower", model=folder / "tower-init", **captions, **small)
    parts = ("--language", configs / "language.json", "--vision", folder / "tower" / "model", "--system", "")
    parts += ("--projector", "pixel_shuffle_2d")
    run(mmchat, "init", *parts, *words, "--out", folder / "init", cwd=folder)
    statements = {"model": folder / "init", "data__path": data / "statements.json"}
    train("projector", run_dir=folder / "projector", **statements, **small)
    lookups = {"model": folder / "projector" / "model", "data__path": data / "lookups.json"}
    train("lookups", run_dir=folder / "lookups", **lookups, **small)
    conversations = {"data__path": data / "train.json", "validation__path": data / "dev.json"}
    train("sft", run_dir=folder / "sft", model=folder / "lookups" / "model", **conversations, **small)
    model = folder / "sft" / "model"
    scoring = (model, data / "heldout.json", "--out", folder / "sft", "--max-new-tokens", 4, "--metric", "ned")
    (folder / "table.txt").write_text(run(mmchat, "eval", *scoring, cwd=folder))
    out = ("--out", folder / "captions.jsonl", "--max-new-tokens", 4)
    run(mmchat, "caption", model, data / "heldout", *out, cwd=folder)
    stages = ("--stage", folder / "tower", "--stage", folder / "projector")
    run(mmchat, "report", folder / "sft", *stages, "--beside", f"the same={folder / 'sft'}", cwd=folder)
    return folder


@pytest.mark.parametrize("stage", ["tower", "projector", "lookups", "sft"])
def test_every_stage_leaves_a_whole_run_directory(path, stage):
    names = {entry.name for entry in (path / stage).iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "inputs.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "curves.png",
        "report.html",
    }
    rows = [row for row in metrics(path / stage) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["terms"] > 0 and row["grad_norm"] > 0 for row in rows)
    positive = ("operations", "memory", "seconds", "tokens_per_second", "supervised_tokens_per_second", "mfu")
    assert all(row[field] > 0 for row in rows for field in positive)
    assert all(0 < row["fill"] <= 1 and row["mfu"] < 1 and 0 <= row["data_wait"] < 1 for row in rows)
    assert (rows[0]["images_per_second"] > 0) == (rows[0]["images"] > 0)


def test_zero_shot_scores_of_the_tower(path):
    assert [row["step"] for row in metrics(path / "tower") if "zero_shot_top1" in row] == [3]
    assert "zero-shot top-1" in (path / "sft" / "report.html").read_text()


def test_compared_runs_must_have_answered_the_same_questions(path):
    from mmchat.errors import UserError
    from mmchat.evaluation.report import write_report

    with pytest.raises(UserError, match=r"has no scores\.json"):
        write_report(path / "sft", beside={"stage": path / "tower"})
    other = path / "other"
    other.mkdir()
    scores = json.loads((path / "sft" / "scores.json").read_text())
    (other / "scores.json").write_text(json.dumps(scores | {"overall/questions": 1}))
    with pytest.raises(UserError, match="was scored on other questions"):
        write_report(path / "sft", beside={"other": other})


def test_sft_validates(path):
    assert [row["step"] for row in metrics(path / "sft") if "validation_loss" in row] == [3]


def test_the_assistant_starts_from_the_pretrained_tower(path):
    from safetensors.torch import load_file

    grown = load_file(path / "tower" / "model" / "model.safetensors")
    used = load_file(path / "init" / "model.safetensors")
    towers = [key for key in grown if key.startswith("towers.0.")]
    assert towers and all((grown[key] == used[key]).all() for key in towers)


def test_scores_are_flat_numbers_and_the_table_shows_the_blind_score(path):
    scores = json.loads((path / "sft" / "scores.json").read_text())
    assert scores.pop("blind_by") == "swapped"
    assert all(isinstance(value, int | float) for value in scores.values())
    assert {"overall", "overall/blind", "overall/commonest"} <= scores.keys()
    assert "blind" in (path / "table.txt").read_text()


def test_every_held_out_image_has_a_caption(path):
    lines = [json.loads(line) for line in (path / "captions.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(isinstance(line["caption"], str) for line in lines)


def test_the_report_is_one_self_contained_page(path):
    page = (path / "sft" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 + 6
    assert page.count("<summary>Config of ") == 3 and "MFU" in page and "peak memory" in page
    assert "<h2>ned</h2>" in page and "edit distance / longer text" in page
    assert "<th>the same</th>" in page and "+0.0 points for this run" in page
    assert "http://" not in page and "https://" not in page


def test_a_run_without_scores_has_a_page_of_its_own(path):
    page = (path / "projector" / "report.html").read_text()
    assert "Scores" not in page and "Held-out" not in page
    assert page.count("data:image/png;base64,") == 1 and "run_dir:" in page and "MFU" in page


def test_the_model_opens_with_transformers_alone(path):
    code = (
        "import sys, mmchat.auto\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1])\n"
        "image = {'type': 'image', 'path': sys.argv[2]}\n"
        "content = [image, {'type': 'text', 'text': 'Count the digits.'}]\n"
        "inputs = processor.apply_chat_template([{'role': 'user', 'content': content}], add_generation_prompt=True,\n"
        "    tokenize=True, return_dict=True)\n"
        "out = model.generate(**inputs, max_new_tokens=3, do_sample=False)\n"
        "print(inputs['input_ids'].shape, inputs['pixel_values'].shape, out.shape[1] > inputs['input_ids'].shape[1])\n"
    )
    image = sorted((path / "data" / "heldout").glob("*.png"))[0]
    printed = run(sys.executable, "-c", code, path / "sft" / "model", image, cwd=path)
    assert "torch.Size([1, 3, 64, 64]) True" in printed
