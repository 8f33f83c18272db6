"""What a run directory records of its inputs, and whether a run repeats itself."""

import json
import sys
from dataclasses import replace

import pytest
import yaml

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.settings import validate
from mmchat.training.config import RunConfig
from mmchat.training.monitoring.inputs import record_inputs
from mmchat.training.rerun import compare_steps, environment_changes
from tests.launching import launch, run_to_end, steps, write_config
from tests.training_fixtures import run_values, write_mixture, write_records

ROWS = [{"step": step, "ids": [str(step)], "loss": 1 / step, "grad_norm": 2.0} for step in (1, 2, 3)]


def test_equal_steps():
    assert str(compare_steps(ROWS, ROWS[:2])) == (
        "equal: losses and gradient norms of steps 1 to 2 are the same bit for bit"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"loss": 0.5 + 1e-16 * 2}, "different since step 2: loss was 0.5 and is 0.5000000000000002"),
        ({"grad_norm": 2.5}, "different since step 2: grad_norm was 2.0 and is 2.5"),
        ({"ids": ["9"], "loss": 7}, "different since step 2: it had other samples (['2'] then, ['9'] now)"),
    ],
)
def test_the_first_step_that_differs_and_in_what(change, told):
    now = [ROWS[0], {**ROWS[1], **change}, {**ROWS[2], "loss": 9}]
    assert str(compare_steps(ROWS, now)) == told


def test_nothing_to_compare():
    with pytest.raises(UserError, match="has none of the steps that were repeated"):
        compare_steps([], ROWS)


@pytest.fixture
def config(assistant_dir, tmp_path):
    sources = write_mixture(tmp_path / "data", 12)
    values = run_values(tmp_path, assistant_dir, sources)
    values["validation"] = {"path": str(write_records(tmp_path / "heldout", 3)), "max_length": 400}
    return validate(RunConfig, values, "here")


def test_hashes_of_data_and_weights(config, assistant_dir):
    assert record_inputs(config) == []
    written = read_json(config.run_dir / "inputs.json")
    assert {name: list(entry["files"]) for name, entry in written.items()} == {
        "model": ["model.safetensors"],
        "data.sources.loose": ["loose.json"],
        "data.sources.shards": ["0.tar"],
        "data.sources.parquet": ["rest.parquet"],
        "validation": ["records.json"],
    }
    hashes = {digest for entry in written.values() for digest in entry["files"].values()}
    assert len(hashes) == 5 and all(len(digest) == 32 for digest in hashes)
    assert record_inputs(config) == []
    path = config.run_dir.parent / "data" / "loose.json"
    path.write_text(path.read_text().replace("red", "green") + "\n")
    (line,) = record_inputs(config)
    assert line.startswith("data.sources.loose has changed since the run began: loose.json (in ")
    assert record_inputs(replace(config, validation=None)) == [line]


def test_packages_and_devices_that_differ(tmp_path):
    environment = {"packages": {"torch": "2.13.0"}, "python": "3.11", "device": "cpu, 1 threads", "ranks": 1}
    for name, changes in (("before", {}), ("now", {"device": "cpu, 2 threads", "packages": {"torch": "2.14.0"}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "environment.json").write_text(json.dumps(environment | changes))
    assert environment_changes(tmp_path / "before", tmp_path / "now") == [
        "device: cpu, 1 threads then, cpu, 2 threads now",
        "torch: 2.13.0 then, 2.14.0 now",
    ]


def test_a_run_repeats_itself_and_changed_data_is_named(assistant_dir, tmp_path):
    """Through the command, with dropout, on two ranks; then with another learning rate in its config."""
    data = write_records(tmp_path / "data", 9)
    lora = {"mode": "lora", "rank": 2, "dropout": 0.2}
    values = run_values(tmp_path, assistant_dir, data, steps=3, batch_size=4)
    values["trainable"] = {"towers": lora, "projectors": "full", "language_model": lora}
    values |= {"precision": "bf16", "micro_batch_size": 1}
    assert launch(write_config(tmp_path / "run.yaml", **values), ranks=2).returncode == 0
    run = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    again = rerun(run, "--steps", "2")
    assert again.returncode == 0 and "equal: losses and gradient norms of steps 1 to 2" in again.stdout, again.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    changed = yaml.safe_load((run / "config.yaml").read_text())
    changed["optimizer"]["lr"] *= 2
    changed["optimizer"]["warmup"] = 0
    (run / "config.yaml").write_text(yaml.safe_dump(changed))
    data.write_text(data.read_text() + "\n")
    again = rerun(run, "--steps", "3", "--out", str(tmp_path / "second"))
    assert again.returncode == 1, again.stdout
    assert "data has changed since the run began: records.json" in again.stdout
    assert "different since step 2: loss was" in again.stdout
    assert len(steps(tmp_path / "second")) == 3 and not (tmp_path / "second" / "model").exists()


def rerun(run, *words):
    return run_to_end([sys.executable, "-m", "mmchat.cli.main", "rerun", str(run), "--check", *words])


def test_a_folder_that_is_no_run(tmp_path):
    result = rerun(tmp_path)
    assert result.returncode == 2
    assert f"{tmp_path} is not the directory of a run that has begun: it has no config.yaml" in result.stdout
