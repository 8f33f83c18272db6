"""Bad data met by the real launcher: a clear message or a counted line, never a hang, never another sample."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.launching import ROOT, launch, metrics, mmchat_train_command, run_to_end, steps, write_config
from tests.training_fixtures import run_values, write_records


@pytest.fixture
def broken_image(tmp_path, assistant_dir):
    """Twelve records, the image of r4 cut off in the middle."""
    data = write_records(tmp_path / "data", 12)
    image = tmp_path / "data" / "4-0.png"
    image.write_bytes(image.read_bytes()[:200])
    config = write_config(tmp_path / "run.yaml", **run_values(tmp_path, assistant_dir, data, steps=3, batch_size=4))
    return tmp_path, config


def test_a_truncated_image_stops_both_ranks_with_one_message(broken_image):
    """And without a line of the launcher."""
    _, config = broken_image
    command = mmchat_train_command(config, "--data.max_length", "401", ranks=2)
    result = run_to_end(command, PYTHONPATH=str(ROOT))
    assert result.returncode == 2, result.stdout
    assert "sigkill_handler" not in result.stdout and "[ERROR]" not in result.stdout
    assert "records.json:record 5" in result.stdout and "4-0.png" in result.stdout
    assert "data.on_bad_sample" not in result.stdout and "on_bad_sample to skip" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_truncated_image_is_left_out_counted_and_listed(broken_image):
    folder, config = broken_image
    result = launch(config, "--on_bad_sample", "skip", "--micro_batch_size", "2", ranks=2)
    assert result.returncode == 0, result.stdout
    lines = [json.loads(line) for line in (folder / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["id"], Path(line["where"]).name) for line in lines] == [("r4", "records.json:record 5")]
    assert "4-0.png is broken or cut off" in lines[0]["reason"]
    assert re.search(r"samples left out +1\b", result.stdout), result.stdout
    # Nothing took its place: the one epoch shows every other id once, and r4's step is a sample short.
    seen = [identity for row in steps(folder / "run") for identity in row["ids"]]
    assert sorted(seen) == sorted(f"r{n}" for n in range(12) if n != 4)
    page = (folder / "run" / "report.html").read_text()
    assert "1 sample left out" in page and "4-0.png is broken or cut off" in page and "incident" not in page


@pytest.mark.slow
def test_a_sample_a_hundred_times_as_long_is_cut_and_that_is_told(tmp_path, assistant_dir):
    data = write_records(tmp_path / "data", 12)
    records = json.loads(data.read_text())
    records[5]["conversations"][1]["value"] = "one two three " * 2500
    data.write_text(json.dumps(records))
    values = run_values(tmp_path, assistant_dir, data, steps=3, batch_size=4, micro_batch_size=2)
    result = launch(write_config(tmp_path / "run.yaml", **values), ranks=2)
    assert result.returncode == 0, result.stdout
    rows = steps(tmp_path / "run")
    [long] = [row for row in rows if "r5" in row["ids"]]
    others = max(row["tokens"] for row in rows if row is not long)  # of four samples
    assert long["cut"] > 100 * others / 4 and 400 < long["tokens"] < others + 400
    assert [row["cut"] for row in rows if row is not long] == [0, 0]
    assert sorted(name for row in rows for name in row["ids"]) == sorted(f"r{n}" for n in range(12))
    assert re.search(rf"tokens cut +{long['cut']:,}", result.stdout)


def test_every_sample_of_a_rank_unusable_does_not_hang_the_other(tmp_path, assistant_dir):
    data = write_records(tmp_path / "data", 12)
    for image in (tmp_path / "data").glob("*.png"):
        image.write_bytes(b"not an image")
    values = run_values(tmp_path, assistant_dir, data, steps=3, batch_size=4, micro_batch_size=1)
    result = launch(write_config(tmp_path / "run.yaml", **values), "--on_bad_sample", "skip", ranks=2)
    assert result.returncode == 0, result.stdout
    assert sum(row["images"] for row in steps(tmp_path / "run")) == 0
    assert len(metrics(tmp_path / "run")) == 3


@pytest.mark.slow
def test_a_contrastive_step_without_a_usable_pair_changes_nothing(tmp_path, make_tower, data_dir):
    from safetensors.torch import load_file

    from mmchat.contrastive.directory import init_clip

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = str(data_dir / "tokenizers" / "llama_like_legacy_false")
    init_clip(make_tower(seed=2), text, words, 16, "pooled", tmp_path / "clip")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat"}]
    records = [{"id": str(n), "image": f"{n}.png", "conversations": turns} for n in range(4)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    for record in records:
        (tmp_path / record["image"]).write_bytes(b"not an image")
    modules = ("towers", "text_encoder", "image_norm", "image_projection", "text_projection", "logit_scale")
    values = run_values(tmp_path, tmp_path / "clip", tmp_path / "records.json", steps=2, batch_size=2)
    values |= {"objective": "contrastive", "trainable": dict.fromkeys(modules, "full")}
    values["optimizer"]["weight_decay"] = 0.0
    result = launch(write_config(tmp_path / "run.yaml", **values), "--on_bad_sample", "skip")
    assert result.returncode == 0, result.stdout
    assert [(row["loss"], row["grad_norm"], row["ids"]) for row in steps(tmp_path / "run")] == [(0, 0, [])] * 2
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "clip", tmp_path / "run" / "model"))
    assert before.keys() == after.keys() and all((before[key] == after[key]).all() for key in before)


@pytest.mark.slow
def test_it_runs_where_there_is_no_compiler(tmp_path, assistant_dir):
    """No c++, no ninja: DeepSpeed must not try to build anything. Both ZeRO and two ranks."""
    tools = tmp_path / "bin"
    tools.mkdir()
    hidden = {"c++", "g++", "gcc", "cc", "clang", "clang++", "ninja", "nvcc"}
    for folder in [*os.environ["PATH"].split(os.pathsep), str(Path(sys.executable).parent)]:
        for tool in Path(folder).glob("*") if Path(folder).is_dir() else ():
            if tool.name not in hidden and not any(tool.name.startswith(f"{h}-") for h in hidden):
                (tools / tool.name).exists() or (tools / tool.name).symlink_to(tool)
    assert shutil.which("c++", path=str(tools)) is None and shutil.which("ninja", path=str(tools)) is None
    data = write_records(tmp_path / "data", 8)
    values = run_values(tmp_path, assistant_dir, data, steps=2, batch_size=4, distributed={"zero_stage": 2})
    config = write_config(tmp_path / "run.yaml", **values)
    result = launch(config, ranks=2, PATH=str(tools), CXX="", CC="", TORCH_EXTENSIONS_DIR=str(tmp_path / "ext"))
    assert result.returncode == 0, result.stdout
    assert not (tmp_path / "ext").exists()


@pytest.mark.slow
def test_one_batch_can_be_learned_by_heart(tmp_path, assistant_dir):
    data = write_records(tmp_path / "data", 12)
    values = run_values(tmp_path, assistant_dir, data, steps=150, batch_size=4, overfit_one_batch=True)
    values["optimizer"] = {"lr": 5e-3, "warmup": 5}
    result = launch(write_config(tmp_path / "run.yaml", **values))
    assert result.returncode == 0, result.stdout
    rows = steps(tmp_path / "run")
    assert rows[0]["loss"] > 2 and rows[-1]["loss"] < 0.05
    assert len({tuple(row["ids"]) for row in rows}) == 1


def test_frozen_tensors_stay_bit_identical_and_missing_gradients_are_told(tmp_path, assistant_dir):
    from safetensors.torch import load_file

    # No record has an image, so the projector, though trained, can get no gradient.
    data = write_records(tmp_path / "data", 8, images=0)
    values = run_values(tmp_path, assistant_dir, data, batch_size=4, precision="bf16")
    values["trainable"] = {"towers": "frozen", "projectors": "full", "language_model": "full"}
    values["trainable"]["language_model.model.layers.0.mlp"] = "frozen"
    result = launch(write_config(tmp_path / "run.yaml", **values))
    assert result.returncode == 0, result.stdout
    assert "no gradient in the first 3 steps for projectors.0" in result.stdout
    before = load_file(assistant_dir / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    frozen = [name for name in before if name.startswith(("towers.", "language_model.model.layers.0.mlp."))]
    assert all((before[name] == after[name]).all() for name in frozen)
    assert not (before["language_model.lm_head.weight"] == after["language_model.lm_head.weight"]).all()
