"""A killed run, resumed, is bit for bit the run that was not killed."""

import re
import signal

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmchat.errors import UserError
from mmchat.model.directory import comparison_logits, load_assistant
from mmchat.settings import load_settings
from mmchat.training.config import RunConfig
from mmchat.training.replay import replay
from mmchat.training.run_dir import claim_run_dir
from tests.launching import (
    kill_group,
    launch,
    metrics,
    random_choice,
    start,
    steps,
    wait_for_step,
    wait_until_gone,
    write_config,
)
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
    values |= {"micro_batch_size": 4, "precision": "bf16", "workers": 1, "monitoring": {"trackers": ["tensorboard"]}}
    values["optimizer"]["name"] = request.param
    if request.param == "adamw":
        # Every way to be trained: adapters (DoRA, with a dropout and rates of their own), in full, not at all.
        lora = {"mode": "lora", "rank": 4, "dropout": 0.1, "dora": True, "rslora": True, "lora_plus_ratio": 4}
        values["trainable"] = {"towers": lora, "projectors": "full", "language_model": lora}
        values["trainable"]["language_model.model.embed_tokens"] = "frozen"
    values["validation"] = {"path": str(data), "every": 5, "max_samples": 6, "max_length": 400}
    config = write_config(folder / "run.yaml", **values)
    result = launch(config, "--run_dir", str(folder / "whole"))
    assert result.returncode == 0, result.stdout
    return folder, config


muon = pytest.param("muon", marks=pytest.mark.slow)
both = pytest.mark.parametrize("setup", ["adamw", muon], indirect=True, scope="module")
adamw = pytest.mark.parametrize("setup", ["adamw"], indirect=True, scope="module")


@both
def test_sigkill_and_a_damaged_checkpoint_then_resume_equals_the_uninterrupted_run(setup):
    """As after a power cut; there is a checkpoint before the damaged one."""
    folder, config = setup
    killed, kill_at = folder / "killed", random_choice(range(7, STEPS - 1))
    process = start(config, "--run_dir", str(killed))
    wait_for_step(process, killed, kill_at)
    kill_group(process)
    assert not (killed / "model").exists()
    damaged = killed / "checkpoints" / (killed / "checkpoints" / "latest").read_text()
    before = max(path for path in damaged.parent.glob("step-*") if path.name < damaged.name)
    flip_a_bit(damaged / "mp_rank_00_model_states.pt")

    result = launch(config, "--run_dir", str(killed), "--resume")
    assert result.returncode == 0, f"killed at step {kill_at}:\n{result.stdout}"
    assert f"{damaged} is damaged: mp_rank_00_model_states.pt has a wrong checksum" in result.stdout
    assert re.search(rf"resumed after step {int(before.name[5:])} from {before}$", result.stdout, re.MULTILINE)
    assert_same(killed, folder / "whole", f"killed at step {kill_at}")
    events = EventAccumulator(str(killed / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))
    assert [event.step for event in events.Scalars("validation/loss")] == [5, 10, STEPS]


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def assert_same(run, whole, when):
    assert [row["step"] for row in steps(run)] == list(range(1, STEPS + 1)), when
    assert steps(run) == steps(whole), when
    validations = [[row for row in metrics(r) if "validation_loss" in row] for r in (run, whole)]
    assert validations[0] == validations[1], when
    files = [file.relative_to(run) for part in ("model", "adapter") for file in (run / part).glob("*.safetensors")]
    assert len(files) == (2 if "mode: lora" in (run / "config.yaml").read_text() else 1)
    for file in files:
        weights, expected = load_file(run / file), load_file(whole / file)
        assert weights.keys() == expected.keys(), when
        assert all((expected[key] == weights[key]).all() for key in expected), when


@adamw
def test_sigterm_to_the_launcher_saves_that_step_leaves_no_process_and_resumes(setup):
    """It kills the runner alone: launch, ranks and data workers must find out by themselves. Saves are asynchronous."""
    folder, config = setup
    told, at = folder / "told", random_choice([4, 7, 9, STEPS - 5])  # after step 4 and 9 a validation is due
    options = ["--run_dir", str(told), "--checkpoint.asynchronous", "true"]
    process = start(config, *options, log=folder / "told.log")
    wait_for_step(process, told, at)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    wait_until_gone(told)
    stopped = len(steps(told))
    said = (folder / "told.log").read_text()
    assert f"terminated: stopped after step {stopped} of {STEPS}" in said
    assert f"resume with: mmchat train {told / 'config.yaml'} --ranks 1 --resume" in said
    assert (told / "checkpoints" / "latest").read_text() == f"step-{stopped:08d}"
    assert "Traceback" not in said
    replayed, logged = replay(told, stopped + 1), steps(folder / "whole")[stopped]  # adapters as in the checkpoint
    assert replayed.weights == str(told / "checkpoints" / f"step-{stopped:08d}")
    assert [sample.id for sample in replayed.samples] == logged["ids"]
    assert replayed.loss == pytest.approx(logged["loss"], rel=0.1)  # the run had dropout

    result = launch(told / "config.yaml", "--resume")
    assert result.returncode == 0 and f"resumed after step {stopped}" in result.stdout, result.stdout
    assert_same(told, folder / "whole", f"terminated after step {stopped}")


@adamw
def test_dropout_is_at_work(setup):
    """Otherwise the tests above would not need the random state."""
    folder, _ = setup
    model, processor = load_assistant(folder / "model")
    assert torch.equal(comparison_logits(model, processor), comparison_logits(model, processor))
    model.train()
    assert not torch.equal(comparison_logits(model, processor), comparison_logits(model, processor))


@adamw
def test_a_finished_run_is_left_alone_and_a_changed_one_refused(setup):
    folder, config = setup

    def opened(*words):
        return claim_run_dir(load_settings(RunConfig, config, ["--run_dir", str(folder / "whole"), *words]), print)

    assert opened("--resume") == "finished"
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        opened()
    with pytest.raises(UserError, match=r"started with other settings \(optimizer.lr: 0.001 -> 0.0005\)"):
        opened("--resume", "--optimizer.lr", "5e-4")
    with pytest.raises(UserError, match=r"started with other settings \(distributed.zero_stage: 0 -> 1"):
        opened("--resume", "--distributed.zero_stage", "1")
