"""Trackers show what metrics.jsonl holds, each step once, also after a resume."""

import json
import struct
import sys
import time

import pytest

from mmchat.errors import UserError
from mmchat.settings import validate
from mmchat.training.config import RunConfig
from mmchat.training.monitoring.trackers import TAGS, check_installed, open_trackers, scalars
from tests.training_fixtures import run_values

ROW = {
    "step": 3, "loss": 1.5, "grad_norm": 2.0, "lr": 1e-3, "epoch": 0.5, "terms": 7, "tokens": 40, "images": 2,
    "fill": 0.8, "operations": 10, "ids": ["a"], "memory": 2**30, "seconds": 0.5, "supervised_tokens_per_second": 14.0,
    "tokens_per_second": 80.0, "images_per_second": 4.0, "mfu": 0.25, "data_wait": 0.01,
    "grad_norms": {"towers": 0.5},
}  # fmt: skip


@pytest.fixture
def opened(tmp_path):
    """opened("tensorboard", ..., done=0): the trackers of a run."""
    return lambda *names, done=0: open_trackers(names, tmp_path / "run", {"batch_size": 8}, done)


def test_scalars_are_the_numbers_of_a_row():
    found = scalars(ROW)
    assert found["train/loss"] == 1.5 and found["speed/mfu"] == 0.25 and found["memory/peak_bytes"] == 2**30
    assert found["grad_norm/towers"] == 0.5 and len(found) == len(TAGS) - 5 + 1  # nothing held out, one module
    assert scalars({"step": 3, "skipped": "nan", "mfu": None, "tokens": 4}) == {"batch/tokens": 4}
    held_out = {"step": 3, "validation_loss": 0.5, "validation_top1": 0.75}
    assert scalars(held_out) == {"validation/loss": 0.5, "validation/top1": 0.75}
    assert scalars({"step": 3, "zero_shot_top1": 0.5}) == {"zero_shot/top1": 0.5}


def test_tensorboard_reads_back_each_step_once(opened, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def log(done, last, loss):
        (tracker,) = opened("tensorboard", done=done)
        for step in range(done + 1, last + 1):
            tracker.log(step, scalars({"loss": loss, "tokens_per_second": 10.0 * step}))
        return tracker

    killed = log(0, 5, 1.0)  # never closed
    folder = str(tmp_path / "run" / "tensorboard")
    assert len(EventAccumulator(folder).Reload().Scalars("train/loss")) == 5
    log(3, 6, 2.0).close()
    killed.close()
    events = EventAccumulator(folder).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "speed/tokens_per_second"}
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert len(events.Scalars("train/loss")) == 6
    assert losses == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 2.0}
    assert [event.value for event in events.Scalars("speed/tokens_per_second")] == [10, 20, 30, 40, 50, 60]


def history(path):
    """What a .wandb file holds of steps, one dictionary for each: LevelDB's log format behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, piece, found = path.read_bytes(), 7, b"", []
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block is padding
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record, piece = Record.FromString(piece), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return found


def test_wandb_offline_goes_on_under_one_id(opened, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for done in (0, 2):
        (tracker,) = opened("wandb", done=done)
        assert (wandb.run.project, wandb.run.name, wandb.run.config["batch_size"]) == ("mmchat", "run", 8)
        ids.append(wandb.run.id)
        for step in (done + 1, done + 2):
            tracker.log(step, scalars(ROW))
        tracker.log(done + 2, scalars({"step": done + 2, "validation_loss": 0.5}))
        tracker.close()
    assert ids[0] == ids[1] == (tmp_path / "run" / "wandb" / "run-id").read_text()
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    deadline = time.monotonic() + 20  # offline, W&B's own process may write the file after `finish` has returned
    while not all(parts := [history(path) for path in files]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [[row["_step"] for row in part] for part in parts] == [[1, 2], [3, 4]]
    for first, second in parts:
        assert first.items() >= scalars(ROW).items()
        assert second.items() >= {**scalars(ROW), "validation/loss": 0.5}.items()


def test_wandb_without_an_account_is_the_users_matter(opened, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"No API key configured.*WANDB_MODE=offline"):
        opened("wandb")


def test_a_missing_package_is_told_with_what_to_install(monkeypatch):
    check_installed([])
    check_installed(["tensorboard"])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match=r"wandb is not installed; run pip install 'mmchat\[tracking\]'"):
        check_installed(["wandb"])


def test_nothing_is_tracked_unasked(opened, tmp_path):
    assert opened() == [] and not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="trackers"):
        validate(RunConfig, run_values(tmp_path, "m", "d", monitoring={"trackers": ["mlflow"]}), "test")
