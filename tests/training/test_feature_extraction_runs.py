"""Whole runs with a feature cache, through the launcher, against the run without one."""

import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import (
    ROOT,
    kill_group,
    launch,
    launch_environment,
    metrics,
    start,
    steps,
    wait_for_step,
    write_config,
)
from tests.training_fixtures import run_values, write_records

pytestmark = pytest.mark.slow

RELATIVE = 1e-5
SAME = ("ids", "terms", "tokens", "images", "lr", "epoch", "fill")


@pytest.fixture(scope="module")
def setup(tmp_path_factory, assistant_dir):
    """A config without a cache, and its finished run on one rank."""
    folder = tmp_path_factory.mktemp("cached")
    data = write_records(folder / "data", 24)
    frozen = {"towers": "frozen", "projectors": "full", "language_model": "full"}
    values = run_values(folder, assistant_dir, data, trainable=frozen, workers=1, steps=6, micro_batch_size=2)
    values["validation"] = {"path": str(write_records(folder / "heldout", 5)), "every": 3, "max_length": 400}
    values["checkpoint"] = {"every": 3, "keep": 9}
    config = write_config(folder / "run.yaml", **values)
    result = launch(config, "--run_dir", str(folder / "without"))
    assert result.returncode == 0, result.stdout
    return folder, config


def run(setup, name, *options, ranks=1):
    folder, config = setup
    result = launch(config, "--run_dir", str(folder / name), *options, ranks=ranks)
    assert result.returncode == 0, result.stdout
    return result.stdout


def check(folder, name):
    for row, like in zip(metrics(folder / name), metrics(folder / "without"), strict=True):
        assert row.get("validation_loss") == pytest.approx(like.get("validation_loss"), abs=RELATIVE)
    for row, like in zip(steps(folder / name), steps(folder / "without"), strict=True):
        assert row["loss"] == pytest.approx(like["loss"], rel=RELATIVE)
        assert row["grad_norm"] == pytest.approx(like["grad_norm"], rel=RELATIVE)
        assert {field: row[field] for field in SAME} == {field: like[field] for field in SAME}
    weights, others = (load_file(folder / one / "model" / "model.safetensors") for one in (name, "without"))
    assert weights.keys() == others.keys()
    for key, weight in weights.items():
        if key.startswith("towers."):
            assert torch.equal(weight, others[key])
        assert torch.allclose(weight, others[key], atol=1e-5), key


@pytest.mark.parametrize(("ranks", "zero_stage", "packing"), [(1, 0, False), (2, 0, True), (2, 2, False), (2, 3, True)])
def test_a_run_with_a_cache_is_the_run_without(setup, ranks, zero_stage, packing):
    folder, _ = setup
    name = f"{ranks}-{zero_stage}"
    options = ["--objective.feature_cache", str(folder / f"cache-{name}"), "--distributed.zero_stage", str(zero_stage)]
    options += ["--micro_batch_size", "null", "--objective.packing.tokens", "203"] if packing else []
    said = run(setup, name, *options, ranks=ranks)
    images = len({path.read_bytes() for path in folder.rglob("*.png") if path.parent.name in ("data", "heldout")})
    assert f": {images} images, 0 of them cached" in said and f"features of {images} images written" in said
    assert len(list((folder / f"cache-{name}").glob("*/*.shard"))) == ranks
    if packing:
        return check_packed(folder, name)
    check(folder, name)


def check_packed(folder, name):
    for row, like in zip(steps(folder / name), steps(folder / "without"), strict=True):
        assert row["fill"] > like["fill"]
        assert row["loss"] == pytest.approx(like["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(like["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(("zero_stage", "begins_with_it"), [("0", False), ("3", True)])
def test_a_run_is_resumed_with_and_without_a_cache(setup, zero_stage, begins_with_it):
    folder, _ = setup
    name, stage = f"resumed-{zero_stage}", ["--distributed.zero_stage", zero_stage]
    first, then = [], ["--objective.feature_cache", str(folder / f"cache-{name}")]
    if begins_with_it:
        first, then = then, first
    run(setup, name, *stage, *first)
    # As if it had been killed after step 3.
    (folder / name / "checkpoints" / "latest").write_text("step-00000003")
    (folder / name / "model").rename(folder / name / "finished-before")
    assert "resumed after step 3" in run(setup, name, *stage, *then, "--resume")
    check(folder, name)


def test_killed_while_it_fills_it_goes_on_where_it_was(setup):
    folder, config = setup
    cache = folder / "cache-killed"
    text = config.read_text() + f"objective: {{feature_cache: {cache}}}\n"
    slow = folder / "slow.yaml"
    slow.write_text(text.replace("workers: 1", "workers: 0").replace(f"{folder}/run", f"{folder}/killed"))
    command = [sys.executable, str(ROOT / "tests" / "training" / "filling_slowly.py"), str(slow)]
    process = subprocess.Popen(command, env=launch_environment(PYTHONPATH=str(ROOT)), start_new_session=True)
    while len(list(cache.glob("*/*.shard"))) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    kill_group(process)
    left = len(list(cache.glob("*/*.shard")))
    said = run(setup, "killed", "--objective.feature_cache", str(cache), ranks=2)
    assert f" {left} of them cached; " in said
    check(folder, "killed")


def test_an_image_that_changes_in_the_middle_ends_the_run_with_its_name(setup):
    folder, config = setup
    data = write_records(folder / "changing", 24, images=1)
    options = ["--data.path", str(data), "--objective.feature_cache", str(folder / "cache-changing"), "--steps", "2000"]
    log = folder / "changing.log"
    process = start(config, "--run_dir", str(folder / "changing-run"), "--on_bad_sample", "skip", *options, log=log)
    wait_for_step(process, folder / "changing-run", 2)
    (data.parent / "3-0.png").write_bytes((folder / "data" / "1-0.png").read_bytes()[:-1] + b"x")
    assert process.wait(timeout=60) != 0
    assert "3-0.png has no features in" in log.read_text() and "Traceback" not in log.read_text()
