"""A data worker, a rank or the launcher of a real run is killed: all processes end within 30 s, with one sentence."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mmchat.errors import SharedError
from mmchat.settings import validate
from mmchat.training import run_dir_lock
from mmchat.training.config import RunConfig
from mmchat.training.distributed.signals import StopSignals
from mmchat.training.run_dir_lock import locked
from mmchat.training.trainer import run
from tests.launching import (
    launch_command,
    launch_environment,
    start,
    torchrun_command,
    wait_for_step,
    wait_until_gone,
    write_config,
)
from tests.training_fixtures import run_values, write_records


def mmchat_command(config, *overrides, ranks):
    return [sys.executable, "-m", "mmchat.cli.main", "train", str(config), *overrides, "--ranks", str(ranks)]


@pytest.fixture
def long_run(tmp_path, assistant_dir):
    """More steps than any test waits for, with a data worker a rank."""
    data = write_records(tmp_path / "data", 24)
    values = run_values(tmp_path, assistant_dir, data, steps=3000, micro_batch_size=2, workers=1)
    return tmp_path, write_config(tmp_path / "run.yaml", **values)


def ranks_of(process, count=2):
    """The ranks below a launcher, once there are `count` of them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = {}
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                rank, parent = child.environ().get("RANK"), child.parent()
            except psutil.Error:
                continue
            if rank is not None and parent is not None and "RANK" not in parent.environ():
                found[int(rank)] = child
        if len(found) == count:
            return [found[rank] for rank in range(count)]
        time.sleep(0.1)
    raise AssertionError("no ranks")


def ends(process, folder):
    """(status, what it printed) of a run that ends within 30 s."""
    begin = time.monotonic()
    status = process.wait(timeout=30)
    wait_until_gone(folder, 30 - (time.monotonic() - begin))
    said = (folder / "log").read_text()
    return status, said


slow = pytest.mark.slow
launchers = pytest.mark.parametrize(
    "command",
    [
        pytest.param(launch_command, id="deepspeed"),
        pytest.param(mmchat_command, id="mmchat", marks=slow),
        pytest.param(torchrun_command, id="torchrun", marks=slow),
    ],
)


@launchers
def test_a_killed_data_worker_ends_the_run(long_run, command):
    """As the kernel does when memory runs out."""
    folder, config = long_run
    process = start(config, ranks=2, log=folder / "log", command=command)
    wait_for_step(process, folder / "run", 3)
    victim = next(child for child in ranks_of(process)[1].children() if "RANK" in child.environ())
    victim.kill()
    status, said = ends(process, folder)
    assert status not in (0, None)
    assert f"error: data worker {victim.pid} died or was killed" in said, said
    assert f"Resume with: mmchat train {folder}/run/config.yaml --ranks 2 --resume" in said
    check_one_sentence(said, command)


@slow
@launchers
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run(long_run, command, rank):
    folder, config = long_run
    process = start(config, ranks=2, log=folder / "log", command=command)
    wait_for_step(process, folder / "run", 3)
    ranks_of(process)[rank].kill()
    status, said = ends(process, folder)
    assert status not in (0, None)
    assert f"error: rank {rank} died or was killed; perhaps memory ran out" in said, said
    check_one_sentence(said, command)


@slow
@launchers
def test_a_rank_killed_while_it_starts_ends_the_run(long_run, command):
    folder, config = long_run
    process = start(config, ranks=2, log=folder / "log", command=command)
    victim = ranks_of(process)[1]
    time.sleep(1.5)
    victim.kill()
    status, said = ends(process, folder)
    assert status not in (0, None) and "rank" in said
    check_one_sentence(said, command)


@slow
@launchers
def test_the_launcher_killed_while_ranks_start_ends_them(long_run, command):
    folder, config = long_run
    process = start(config, ranks=2, log=folder / "log", command=command)
    ranks_of(process)
    process.kill()
    _, said = ends(process, folder)
    assert "error: the launcher died or was killed. All ranks end. Start it again" in said
    check_one_sentence(said, command)


@slow
def test_a_single_rank_that_was_killed_is_explained_by_mmchat_train(long_run):
    folder, config = long_run
    process = start(config, ranks=1, log=folder / "log", command=mmchat_command)
    wait_for_step(process, folder / "run", 3)
    ranks_of(process, 1)[0].kill()
    status, said = ends(process, folder)
    assert status == 137 and "error: a rank was killed by SIGKILL; perhaps memory ran out" in said, said
    check_one_sentence(said, mmchat_command)


def check_one_sentence(said, command):
    assert said.count("error: ") == 1, said
    if command is not torchrun_command:  # whose agent prints a traceback of its own
        assert "Traceback" not in said, said
    assert "gloo" not in said, said


def test_a_second_run_in_the_same_directory_is_refused_in_one_line(tmp_path, assistant_dir, monkeypatch):
    """By another process, as when Slurm requeues a job while the old one lives; and free again when that has died."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom mmchat.training.run_dir_lock import locked\n"
        "with locked(Path(sys.argv[1]), print):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], **pipes())
    assert first.stdout.readline() == "held\n"
    monkeypatch.setattr(run_dir_lock, "PATIENCE", 0)
    values = run_values(tmp_path, assistant_dir, write_records(tmp_path / "data", 8))
    host = os.uname().nodename
    with pytest.raises(SharedError, match=f"run is in use by process {first.pid} on {host}; wait until"):
        run(validate(RunConfig, values, "here"), StopSignals())
    assert not (tmp_path / "run" / "config.yaml").exists()
    first.send_signal(signal.SIGKILL)
    first.wait()
    with locked(tmp_path / "run", print):
        pass
    with locked(tmp_path / "run", print):  # also after an orderly end in the same process
        pass


def pipes():
    return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": launch_environment()}


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    import errno
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    said = []
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path / "run", said.append):
        assert "has no locks (No locks available)" in said[0]
