"""A run that was killed goes on as if nothing had happened."""

import random
import time

import pytest
from safetensors.torch import load_file

from tests.launching import kill_group, launch, metrics, start, steps, write_config
from tests.training_fixtures import run_values, write_mixture, write_records

STEPS = 14


@pytest.fixture(scope="module")
def setup(request, tmp_path_factory, make_assistant):
    """An assistant with dropout, so that resuming must restore the random state as well; on a mixture of sources."""
    from mmchat.model.directory import save_assistant

    folder = tmp_path_factory.mktemp("resume")
    save_assistant(*make_assistant(attention_dropout=0.2), folder / "model")
    data = write_records(folder / "heldout", 6)
    mixture = write_mixture(folder / "data", 21)
    values = run_values(folder, folder / "model", mixture, steps=STEPS, checkpoint={"every": 3, "keep": 2})
    values |= {"micro_batch_size": 4, "precision": "bf16", "workers": 1}
    values["optimizer"]["name"] = request.param
    if request.param == "adamw":
        # Every way to be trained: adapters (with a dropout of their own), in full, not at all.
        lora = {"mode": "lora", "rank": 4, "dropout": 0.1}
        values["trainable"] = {"towers": lora, "projectors": "full", "language_model": lora}
        values["trainable"]["language_model.model.embed_tokens"] = "frozen"
    values["validation"] = {"path": str(data), "every": 5, "max_samples": 6, "max_length": 400}
    config = write_config(folder / "run.yaml", **values)
    result = launch(config, "--run_dir", str(folder / "whole"))
    assert result.returncode == 0, result.stdout
    return folder, config


both = pytest.mark.parametrize("setup", ["adamw", "muon"], indirect=True, scope="module")
adamw = pytest.mark.parametrize("setup", ["adamw"], indirect=True, scope="module")


@both
def test_sigkill_then_resume_equals_the_uninterrupted_run(setup):
    folder, config = setup
    killed, kill_at = folder / "killed", random.randint(4, STEPS - 2)
    process = start(config, "--run_dir", str(killed))
    deadline = time.monotonic() + 120
    while not (killed / "metrics.jsonl").exists() or len(steps_so_far(killed)) < kill_at:
        assert process.poll() is None, f"the run ended before step {kill_at}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill_group(process)
    assert not (killed / "model").exists()

    result = launch(config, "--run_dir", str(killed), "--resume")
    assert result.returncode == 0, f"killed at step {kill_at}:\n{result.stdout}"
    assert "resumed after step" in result.stdout
    numbers = [row["step"] for row in metrics(killed) if "loss" in row]
    assert numbers == list(range(1, STEPS + 1)), f"killed at step {kill_at}"
    assert steps(killed) == steps(folder / "whole"), f"killed at step {kill_at}"
    validations = [[row for row in metrics(run) if "validation_loss" in row] for run in (killed, folder / "whole")]
    assert validations[0] == validations[1]
    files = [
        file.relative_to(killed) for part in ("model", "adapter") for file in (killed / part).glob("*.safetensors")
    ]
    assert len(files) == (3 if "lora" in config.read_text() else 1)
    for file in files:
        whole, resumed = load_file(folder / "whole" / file), load_file(killed / file)
        assert whole.keys() == resumed.keys() and all((whole[key] == resumed[key]).all() for key in whole)


def steps_so_far(run):
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


@adamw
def test_dropout_is_at_work(setup):
    """Otherwise the test above would not need the random state."""
    folder, config = setup
    result = launch(config, "--run_dir", str(folder / "other-seed"), "--steps", str(STEPS), "--seed", "1")
    assert result.returncode == 0, result.stdout
    assert steps(folder / "other-seed")[0]["loss"] != steps(folder / "whole")[0]["loss"]


def test_a_half_written_checkpoint_is_never_picked_up(tmp_path):
    from mmchat.training.checkpoint import latest

    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-00000003").mkdir(parents=True)
    (checkpoints / "latest").write_text("step-00000003")
    (checkpoints / ".step-00000006.partial").mkdir()
    assert latest(checkpoints).name == "step-00000003"


@adamw
def test_a_finished_run_is_left_alone_and_a_changed_one_refused(setup):
    folder, config = setup
    again = launch(config, "--run_dir", str(folder / "whole"), "--resume")
    assert again.returncode == 0 and "nothing to do" in again.stdout
    without = launch(config, "--run_dir", str(folder / "whole"))
    assert without.returncode == 2 and "already holds a run; add --resume" in without.stdout
    changed = launch(config, "--run_dir", str(folder / "whole"), "--resume", "--optimizer.lr", "5e-4")
    assert changed.returncode == 2 and "begun with other settings" in changed.stdout
    assert "Traceback" not in without.stdout + changed.stdout
