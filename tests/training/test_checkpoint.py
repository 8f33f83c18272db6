"""Checkpoints on a bad disk: damage is found before it is believed, a full disk costs nothing that was there."""

import errno
import json
import pickle
import random
import shutil
import subprocess
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch

from mmchat.errors import SharedError, UserError
from mmchat.training.checkpoints.loader import load_checkpoint
from mmchat.training.checkpoints.reshard import load_resharded
from mmchat.training.checkpoints.retention import newest_checkpoint
from mmchat.training.checkpoints.rng_state import restore_rng_state, rng_state, seed_all
from mmchat.training.checkpoints.saver import CheckpointSaver
from mmchat.training.checkpoints.storage import (
    MANIFEST,
    ChecksummedFiles,
    _Summed,
    find_damage,
    read_manifest,
    snapshot,
)
from mmchat.training.config import CheckpointConfig
from tests.launching import launch, write_config
from tests.training_fixtures import run_values, write_records


class Engine:
    """As much of DeepSpeed's engine as a save needs."""

    def __init__(self):
        self.weights = {"module": torch.arange(40_000.0), "steps": [torch.ones(2), 3]}
        self.checkpoint_engine = None

    def zero_optimization_stage(self):
        return 0

    def save_checkpoint(self, directory, tag, client_state, save_latest):
        path = Path(directory) / tag
        path.mkdir(exist_ok=True)
        self.checkpoint_engine.save({**self.weights, **client_state}, str(path / "states.pt"))


def saver(directory, engine=None, tell=pytest.fail, **settings):
    return CheckpointSaver(engine or Engine(), directory, CheckpointConfig(**settings), tell)


@pytest.fixture
def three(tmp_path):
    """Checkpoints after steps 3, 6 and 9, of which two are kept."""
    for step in (3, 6, 9):
        saver(tmp_path).save(step, guard={})
    return tmp_path


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_two_are_kept_and_all_files_are_in_the_manifest(three):
    assert names(three) == ["latest", "step-00000006", "step-00000009"]
    last = newest_checkpoint(three, pytest.fail)
    assert last.name == "step-00000009"
    assert set(read_manifest(last).files) == {"states.pt", "random-rank-0.pt"}
    state = torch.load(last / "states.pt")
    assert (state["step"], state["guard"]) == (9, {}) and torch.equal(state["module"], torch.arange(40_000.0))


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("states.pt", lambda data: data[:-1], "bytes, but"),
        ("states.pt", lambda data: data[:5000] + bytes([data[5000] ^ 16]) + data[5001:], "has a wrong checksum"),
        ("random-rank-0.pt", None, "random-rank-0.pt is missing"),
        (MANIFEST, lambda data: data[:20], "manifest.json is not valid JSON"),
        (MANIFEST, lambda data: b'{"states.pt": [3, 4]}', "not of this version of mmchat"),
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
    assert newest_checkpoint(three, said.append).name == "step-00000006"
    assert len(said) == 1 and "step-00000009 is damaged: " in said[0] and words in said[0]
    assert said[0].endswith("; trying step-00000006")
    # What is saved next takes the place of the damaged one.
    saver(three).save(7)
    assert names(three) == ["latest", "step-00000006", "step-00000007"]


def test_only_damaged_ones_are_an_error(three):
    for folder in three.glob("step-*"):
        (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        newest_checkpoint(three, lambda line: None)


def test_a_half_written_one_and_a_pointer_into_the_void(three):
    (three / ".step-00000012.partial").mkdir()
    assert newest_checkpoint(three, pytest.fail).name == "step-00000009"
    (three / "latest").write_text("step-00000007")
    said = []
    assert newest_checkpoint(three, said.append).name == "step-00000006"
    assert "step-00000007, which does not exist" in said[0]
    assert newest_checkpoint(three / "nowhere", pytest.fail) is None
    saver(three).save(8)
    assert names(three) == ["latest", "step-00000006", "step-00000008"]


@pytest.fixture
def full_disk(request, monkeypatch):
    """No file grows beyond so many bytes."""
    write = _Summed.write

    def until_full(self, data):
        room = request.param - self.size
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, memoryview(data)[:room])

    monkeypatch.setattr(_Summed, "write", until_full)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("full_disk", [0, 5_000, 100_000, 160_900], indirect=True)
def test_a_full_disk_leaves_the_old_one_and_nothing_else(three, full_disk, asynchronous):
    """Wherever in the file the disk is full, torch's writer must not hide why."""
    with pytest.raises(SharedError) as told, saver(three, asynchronous=asynchronous) as own:
        own.save(12)
        assert asynchronous  # then it is raised at the end of the with block
    assert "checkpoint of step 12 could not be written" in str(told.value)
    assert "No space left on device. It needs about 0.2 MB" in str(told.value)
    assert "step-00000009 is intact" in str(told.value) and "--resume" in str(told.value)
    assert names(three) == ["latest", "step-00000006", "step-00000009"]
    assert find_damage(three / "step-00000009") is None


@pytest.mark.parametrize("full_disk", [5_000], indirect=True)
def test_a_save_that_failed_behind_our_back_is_told_at_the_next_one_and_never_lost(three, full_disk):
    own = saver(three, asynchronous=True)
    own.save(12)
    with pytest.raises(SharedError, match="checkpoint of step 12"):
        own.save(15)
    said = []
    with pytest.raises(KeyError), saver(three, tell=said.append, asynchronous=True) as own:
        own.save(18)
        raise KeyError  # what the user must hear of first
    assert len(said) == 1 and "checkpoint of step 18 could not be written" in said[0]
    assert names(three) == ["latest", "step-00000006", "step-00000009"]


@pytest.fixture
def slow_disk(monkeypatch):
    """Nothing is written before the test sets this."""
    may_write, write = Event(), _Summed.write

    def slowly(self, data):
        may_write.wait()
        return write(self, data)

    monkeypatch.setattr(_Summed, "write", slowly)
    yield may_write
    may_write.set()


def test_training_goes_on_while_a_checkpoint_is_written_and_what_is_written_is_the_moment_of_the_save(three, slow_disk):
    engine = Engine()
    with saver(three, engine, asynchronous=True) as own:
        final = own.save(12, guard={"steps": 12})
        for _ in range(3):  # steps, while nothing is on the disk yet
            engine.weights["module"].mul_(-1).add_(1)
            torch.rand(3)
        # As a SIGKILL would leave it now:
        assert names(three) == [".step-00000012.partial", "latest", "step-00000006", "step-00000009"]
        assert newest_checkpoint(three, pytest.fail).name == "step-00000009"
        slow_disk.set()
    assert names(three) == ["latest", "step-00000009", "step-00000012"] and find_damage(final) is None
    state = torch.load(final / "states.pt")
    assert torch.equal(state["module"], torch.arange(40_000.0)) and state["guard"] == {"steps": 12}


@pytest.mark.parametrize("at_once", [False, True])
def test_the_next_save_waits_for_the_one_before(three, slow_disk, at_once):
    own = saver(three, asynchronous=True)
    own.save(12)
    second = Thread(target=own.save, args=(15, at_once))
    second.start()
    second.join(0.2)
    assert second.is_alive() and not list(three.glob("*15*"))
    slow_disk.set()
    second.join()
    if not at_once:
        own.wait()
    assert names(three) == ["latest", "step-00000012", "step-00000015"]


def test_a_snapshot_keeps_what_is_shared_and_is_written_as_the_original_would_be(tmp_path):
    weight = torch.randn(5, 4)
    state = {"embedding": weight, "head": weight, "row": weight[2], "rest": [(1, "a"), {"x": torch.tensor(3)}]}
    expected = weight.clone()
    copy = snapshot(state)
    weight.zero_()
    assert torch.equal(copy["head"], expected) and torch.equal(copy["row"], expected[2])
    assert copy["head"].data_ptr() == copy["embedding"].data_ptr() != weight.data_ptr()
    assert copy["rest"] == state["rest"]


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"state": Trap()}, tmp_path / "states.pt")
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        ChecksummedFiles().load(str(tmp_path / "states.pt"))
    # The converter for another number of ranks, a process of its own, refuses as well; what it began is removed.
    folder = tmp_path / "checkpoints" / "step-00000003"
    (folder.parent / ".step-00000002.universal-77").mkdir(parents=True)
    folder.mkdir()
    torch.save({"state": Trap()}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (folder / MANIFEST).write_text(json.dumps({"ranks": 2, "zero_stage": 2, "files": {"states.pt": [1_000_000, 0]}}))
    with pytest.raises(SharedError) as told:
        load_resharded(_EngineWithGroups(), folder)
    assert "written by 2 ranks and could not be converted for 1: the converter ended with" in str(told.value)
    assert "weights_only" in str(told.value) and "about 2.0 MB" in str(told.value), told.value
    assert names(folder.parent) == ["step-00000003"] and not (tmp_path / "sprung").exists()


class _EngineWithGroups(Engine):
    basic_optimizer = torch.optim.SGD([torch.zeros(1)])


def test_another_zero_stage_is_refused(three):
    folder = three / "step-00000009"
    (folder / MANIFEST).write_text(json.dumps({"ranks": 1, "zero_stage": 2, "files": {}}))
    with pytest.raises(
        SharedError, match=r"written under ZeRO 2, this run uses ZeRO 0; resume with distributed\.zero_stage: 2"
    ):
        load_checkpoint(Engine(), folder, 0, pytest.fail)


def test_generators_begin_anew_at_a_function_of_seed_step_and_rank():
    def draws():
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    before = rng_state()
    seen = set()
    for where in [(0, 5, 0), (0, 5, 1), (0, 6, 0), (1, 5, 0)]:
        seed_all(*where)
        seen |= set(zip("abc", drawn := draws(), strict=True))
        seed_all(*where)
        assert draws() == drawn
    assert len(seen) == 4 * 3
    restore_rng_state(before)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own that holds one checkpoint of the tiny assistant (3.2 MB) and no second."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_really_full_disk_stops_both_ranks_with_one_message(tmp_path, small_disk, assistant_dir, asynchronous):
    data = write_records(tmp_path / "data", 8)
    values = run_values(tmp_path, assistant_dir, data, batch_size=4, distributed={"zero_stage": 1})
    values["checkpoint"] = {"every": 2, "keep": 2, "asynchronous": asynchronous}
    config = write_config(tmp_path / "run.yaml", **values | {"run_dir": str(small_disk / "run")})
    result = launch(config, ranks=2)
    assert result.returncode == 2, result.stdout
    assert result.stdout.count("error: ") == 1 and "Traceback" not in result.stdout, result.stdout
    assert "checkpoint of step 4 could not be written" in result.stdout and "MB are missing" in result.stdout
    kept = [name for name in names(small_disk / "run" / "checkpoints") if "step" in name]
    assert kept == ["step-00000002"]
    assert find_damage(small_disk / "run" / "checkpoints" / "step-00000002") is None
    assert shutil.disk_usage(small_disk).free > 500_000
