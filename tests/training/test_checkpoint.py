"""Checkpoints on a bad disk: damage is found before it is believed, a full disk costs nothing that was there."""

import errno
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mmchat.errors import UserError
from mmchat.training import checkpoint
from mmchat.training.checkpoint_files import MANIFEST, _Summed, damage
from tests.launching import launch, write_config
from tests.training_fixtures import run_values, write_records


class Engine:
    """As much of DeepSpeed's engine as a save needs."""

    def __init__(self):
        self.weights = {"module": torch.arange(40_000.0), "steps": [torch.ones(2), 3]}
        self.checkpoint_engine = None

    def save_checkpoint(self, directory, tag, client_state, save_latest):
        path = Path(directory) / tag
        path.mkdir(exist_ok=True)
        self.checkpoint_engine.save({**self.weights, **client_state}, str(path / "states.pt"))


@pytest.fixture
def three(tmp_path):
    """Checkpoints after steps 3, 6 and 9, of which two are kept."""
    for step in (3, 6, 9):
        checkpoint.save(Engine(), tmp_path, step, keep=2, guard={})
    return tmp_path


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_two_are_kept_and_all_files_are_in_the_manifest(three):
    assert names(three) == ["latest", "step-00000006", "step-00000009"]
    newest = checkpoint.newest(three, pytest.fail)
    assert newest.name == "step-00000009"
    assert set(json.loads((newest / MANIFEST).read_text())) == {"states.pt", "random-rank-0.pt"}
    state = torch.load(newest / "states.pt")
    assert (state["step"], state["guard"]) == (9, {}) and torch.equal(state["module"], torch.arange(40_000.0))


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("states.pt", lambda data: data[:-1], "bytes, "),
        ("states.pt", lambda data: data[:5000] + bytes([data[5000] ^ 16]) + data[5001:], "holds other bytes than were"),
        ("random-rank-0.pt", None, "random-rank-0.pt is missing"),
        (MANIFEST, lambda data: data[:20], "manifest.json is not valid JSON"),
        (MANIFEST, None, "manifest.json does not exist"),
    ],
)
def test_damage_to_the_newest_is_told_and_the_one_before_is_used(three, name, harm, words):
    file = three / "step-00000009" / name
    data = file.read_bytes()
    file.unlink()
    if harm:
        file.write_bytes(harm(data))
    said = []
    assert checkpoint.newest(three, said.append).name == "step-00000006"
    assert len(said) == 1 and "step-00000009 is damaged: " in said[0] and words in said[0]
    assert said[0].endswith("; trying step-00000006")
    # What is saved next takes the place of the damaged one.
    checkpoint.save(Engine(), three, 7, keep=2)
    assert names(three) == ["latest", "step-00000006", "step-00000007"]


def test_only_damaged_ones_are_an_error(three):
    for folder in three.glob("step-*"):
        (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        checkpoint.newest(three, lambda line: None)


def test_a_half_written_one_and_a_pointer_into_the_void(three):
    (three / ".step-00000012.partial").mkdir()
    assert checkpoint.newest(three, pytest.fail).name == "step-00000009"
    (three / "latest").write_text("step-00000007")
    said = []
    assert checkpoint.newest(three, said.append).name == "step-00000006"
    assert "step-00000007, which is not there" in said[0]
    assert checkpoint.newest(three / "nowhere", pytest.fail) is None
    checkpoint.save(Engine(), three, 8, keep=2)
    assert names(three) == ["latest", "step-00000006", "step-00000008"]


@pytest.mark.parametrize("limit", [0, 5_000, 100_000, 160_900])
def test_a_full_disk_leaves_the_old_one_and_nothing_else(three, monkeypatch, limit):
    """Wherever in the file the disk is full, torch's writer must not hide why."""
    write = _Summed.write

    def until_full(self, data):
        room = limit - self.size
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, memoryview(data)[:room])

    monkeypatch.setattr(_Summed, "write", until_full)
    with pytest.raises(UserError) as told:
        checkpoint.save(Engine(), three, 12, keep=2)
    assert "checkpoint of step 12 could not be written" in str(told.value)
    assert "No space left on device. It takes about 0.2 MB" in str(told.value)
    assert "step-00000009 is intact" in str(told.value) and "--resume" in str(told.value)
    assert names(three) == ["latest", "step-00000006", "step-00000009"]
    assert damage(three / "step-00000009") is None


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own that holds one checkpoint of the tiny assistant (3.2 MB) and no second."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_really_full_disk_stops_both_ranks_with_one_message(tmp_path, small_disk, assistant_dir):
    data = write_records(tmp_path / "data", 8)
    values = run_values(tmp_path, assistant_dir, data, batch_size=4, zero_stage=1, checkpoint={"every": 2, "keep": 2})
    config = write_config(tmp_path / "run.yaml", **values | {"run_dir": str(small_disk / "run")})
    result = launch(config, ranks=2)
    assert result.returncode == 2, result.stdout
    assert result.stdout.count("error: ") == 1 and "Traceback" not in result.stdout, result.stdout
    assert "checkpoint of step 4 could not be written" in result.stdout and "MB are missing" in result.stdout
    kept = [name for name in names(small_disk / "run" / "checkpoints") if "step" in name]
    assert kept == ["step-00000002"]
    assert damage(small_disk / "run" / "checkpoints" / "step-00000002") is None
    assert shutil.disk_usage(small_disk).free > 500_000
