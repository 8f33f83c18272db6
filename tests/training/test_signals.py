"""Signals: every rank stops after the same step, whatever the launcher does with them, and nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmchat.training.distributed.signals import (
    LAUNCHED_BY,
    SAME_CTRL_C,
    StopSignals,
    exit_status,
    launcher_links,
    orphaned,
)
from tests.launching import (
    ROOT,
    launch,
    launch_environment,
    metrics,
    start,
    steps,
    torchrun_command,
    wait_for_step,
    wait_until_gone,
    write_config,
)
from tests.training_fixtures import run_values, write_records


@pytest.fixture
def outside_a_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def long_run(tmp_path, assistant_dir):
    """More steps than any test waits for, each split over ranks and micro-batches, with a data worker a rank."""
    data = write_records(tmp_path / "data", 24)
    values = run_values(tmp_path, assistant_dir, data, steps=3000, micro_batch_size=2, workers=1)
    return tmp_path, write_config(tmp_path / "run.yaml", **values)


@pytest.mark.parametrize(
    ("flags", "status"), [([0, 0], 0), ([1, 0], 130), ([2.0, 0.0], 130), ([0, 1], 143), ([1, 1], 130)]
)
def test_exit_status(flags, status):
    assert exit_status(flags) == status


@pytest.mark.parametrize(("number", "flags"), [(signal.SIGINT, [1, 0]), (signal.SIGTERM, [0, 1])])
def test_a_signal_raises_a_flag_and_nothing_else(outside_a_launcher, number, flags):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        with StopSignals() as signals:
            assert signals.flags() == [0, 0]
            for _ in range(3):  # terminal and launcher both deliver it
                os.kill(os.getpid(), number)
            assert signals.flags() == flags
        os.kill(os.getpid(), number)  # still harmless: the rank is on its way out
    finally:
        for n, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(n, handler)


def test_without_a_signal_or_with_an_error_all_is_as_before(outside_a_launcher):
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(RuntimeError), StopSignals():
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_ctrl_c_ends_at_once():
    code = (
        "import time\nfrom mmchat.training.distributed.signals import StopSignals\n"
        "with StopSignals():\n    print(1, flush=True)\n    time.sleep(60)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(SAME_CTRL_C / 4)
    assert process.poll() is None  # so quickly it is one Ctrl-C that came twice
    time.sleep(SAME_CTRL_C)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130


def test_losing_the_launcher_counts_as_being_told_to_end(tmp_path):
    """The rank's parent, a stand-in for a launcher, dies; the same rank without a launcher continues."""
    code = (
        "import os, time\nfrom pathlib import Path\nfrom mmchat.training.distributed.signals import StopSignals\n"
        "signals = StopSignals()\nparent = os.getppid()\nprint(signals.flags(), flush=True)\n"
        "while os.getppid() == parent: time.sleep(.01)\nprint(signals.flags(), flush=True)"
    )
    for rank, flags in (("0", "[0, 1]"), (None, "[0, 0]")):
        environment = {key: value for key, value in os.environ.items() if key != "RANK"} | (
            {"RANK": rank} if rank else {}
        )
        launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
        parent = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True, env=environment)
        assert parent.stdout.readline() == "[0, 0]\n"
        parent.kill()
        assert parent.stdout.readline() == f"{flags}\n"
        parent.wait()


def test_links_end_at_the_launcher(monkeypatch):
    """Not at the shell above it, which a run under nohup outlives."""
    monkeypatch.delenv("RANK", raising=False)
    assert launcher_links() == []
    monkeypatch.setenv("RANK", "0")
    assert launcher_links() == [(os.getpid(), os.getppid())]
    above = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
    monkeypatch.setenv(LAUNCHED_BY, str(above))
    assert launcher_links() == [(os.getpid(), os.getppid()), (os.getppid(), above)]
    assert not orphaned(launcher_links())
    assert orphaned([(os.getpid(), os.getppid()), (os.getppid(), above + 1)])


@pytest.mark.slow
def test_ctrl_c_under_torchrun_saves_on_both_ranks(long_run):
    """The terminal and torchrun both send it, to ranks and data workers alike."""
    folder, config = long_run
    process = start(config, ranks=2, log=folder / "log", command=torchrun_command)
    wait_for_step(process, folder / "run", 5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=40) == 1
    wait_until_gone(folder)
    check_stopped(folder, "interrupted", ranks=2)


def check_stopped(folder, word, ranks):
    stopped, said = len(steps(folder / "run")), (folder / "log").read_text()
    assert [row["step"] for row in metrics(folder / "run")] == list(range(1, stopped + 1))
    assert f"{word}: stopped after step {stopped} of 3000" in said, said
    assert (folder / "run" / "checkpoints" / "latest").read_text() == f"step-{stopped:08d}"
    random_states = (folder / "run" / "checkpoints" / f"step-{stopped:08d}").glob("random-rank-*.pt")
    assert len(list(random_states)) == ranks


@pytest.mark.slow
def test_sigterm_under_torchrun_then_resume_under_deepspeed(long_run):
    folder, config = long_run
    process = start(config, ranks=2, log=folder / "log", command=torchrun_command)
    wait_for_step(process, folder / "run", 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=40) == 1
    wait_until_gone(folder)
    check_stopped(folder, "terminated", ranks=2)
    stopped = len(steps(folder / "run"))
    end = folder / "run" / "config.yaml"
    end.write_text(end.read_text().replace("steps: 3000", f"steps: {stopped + 2}"))
    result = launch(end, "--resume", ranks=2)
    assert result.returncode == 0 and f"resumed after step {stopped}" in result.stdout, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_mmchat_train_passes_signal_and_status_on(long_run, number, status, word):
    folder, config = long_run
    process = mmchat_train(folder, config)
    process.send_signal(number)
    assert process.wait(timeout=40) == status
    wait_until_gone(folder)
    check_stopped(folder, word, ranks=2)


@pytest.mark.slow
def test_mmchat_train_killed_leaves_no_process(long_run):
    folder, config = long_run
    process = mmchat_train(folder, config)
    process.kill()
    process.wait()
    wait_until_gone(folder)
    check_stopped(folder, "terminated", ranks=2)


def mmchat_train(folder, config):
    command = [sys.executable, "-m", "mmchat.cli.main", "train", str(config), "--ranks", "2"]
    with (folder / "log").open("w") as log:
        environment = launch_environment(PYTHONPATH=str(ROOT))
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    wait_for_step(process, folder / "run", 5)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_everyone_is_signalled_at_once_under_deepspeed(long_run, number):
    """Ctrl-C in a terminal, or `scancel`: runner, launch, ranks and data workers all receive it."""
    folder, config = long_run
    process = start(config, ranks=2, log=folder / "log")
    wait_for_step(process, folder / "run", 5)
    os.killpg(process.pid, number)
    process.wait(timeout=40)
    wait_until_gone(folder)
    # DeepSpeed's launch answers Ctrl-C with SIGTERM to its ranks.
    said = (folder / "log").read_text()
    check_stopped(folder, "terminated" if "terminated" in said else "interrupted", ranks=2)
