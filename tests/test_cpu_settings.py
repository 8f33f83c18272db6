"""Settings of CPU processes: what is missing, and that a program restarts as itself, once."""

import json
import os
import signal
import subprocess
import sys

import pytest

from mmchat import cpu_settings
from mmchat.cli import main
from mmchat.cpu_settings import ALLOCATOR, CONTROL, OFF, SPINS, has_gpu, missing_settings, threads_of_each

PROGRAM = """
import json, os, signal, sys
from mmchat.cpu_settings import restart_with_settings

first = os.environ.get("FIRST_PROCESS")
os.environ.setdefault("FIRST_PROCESS", str(os.getpid()))
sys.stderr.write("started ")
restart_with_settings(2)
print(json.dumps({
    "argv": sys.argv, "environment": dict(os.environ), "same process": first == str(os.getpid()),
    "stdin": sys.stdin.read(), "folder": os.getcwd(), "flags": [sys.flags.isolated, sys.flags.dev_mode],
    "SIGHUP ignored": signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "torch": "torch" in sys.modules,
}))
sys.exit(7)
"""
OWN = (
    "OMP_WAIT_POLICY",
    "OMP_NUM_THREADS",
    "GLIBC_TUNABLES",
    "GOMP_SPINCOUNT",
    CONTROL,
    "FIRST_PROCESS",
    "CUDA_VISIBLE_DEVICES",
)


def clean_environment(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OWN} | {
        "CUDA_VISIBLE_DEVICES": "",  # as on a machine without a GPU
        **changes,
    }


@pytest.fixture
def run_program(tmp_path):
    """run_program(**environment) -> (what the program says about itself, how often it was started)"""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(**environment):
        done = subprocess.run(
            [sys.executable, "-X", "dev", str(program), "a b", "--key=$x", ""],
            env=clean_environment(PYTHONPATH=os.pathsep.join(sys.path), **environment),
            input="three\nlines\nof text",
            capture_output=True,
            text=True,
            cwd=tmp_path,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )
        assert done.returncode == 7, done.stderr
        return json.loads(done.stdout), done.stderr.count("started")

    return run


def test_a_program_restarts_as_itself(run_program, tmp_path):
    found, starts = run_program()
    assert starts == 2 and found["same process"] and not found["torch"]
    assert found["argv"] == [str(tmp_path / "program.py"), "a b", "--key=$x", ""]
    assert (found["stdin"], found["folder"], found["flags"]) == ("three\nlines\nof text", str(tmp_path), [0, True])
    assert found["SIGHUP ignored"]  # as under nohup
    settings = {name: found["environment"].get(name) for name in OWN[:4]}
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert settings == {
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": threads,
        "GLIBC_TUNABLES": ALLOCATOR,
        "GOMP_SPINCOUNT": SPINS,
    }


def test_what_the_user_has_set_stays(run_program):
    found, starts = run_program(OMP_WAIT_POLICY="active", OMP_NUM_THREADS="3")
    assert starts == 2
    assert [found["environment"].get(name) for name in OWN[:4]] == ["active", "3", ALLOCATOR, None]


@pytest.mark.parametrize(
    "environment",
    [
        {CONTROL: OFF},
        {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.arena_max=1"},
    ],
)
def test_without_a_missing_setting_it_starts_once(run_program, environment):
    found, starts = run_program(**environment)
    assert starts == 1
    assert {name: found["environment"][name] for name in environment} == environment


def test_a_setting_that_is_lost_at_every_start_does_not_loop(tmp_path):
    """As GLIBC_TUNABLES is, in a program with capabilities of its own."""
    code = (
        "import os, sys; os.environ.pop('GLIBC_TUNABLES', 0); print('started', flush=True)\n"
        "from mmchat.cpu_settings import restart_with_settings; restart_with_settings()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("started\n" * 2, 0)


def test_a_gpu_is_seen_without_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_settings, "version", lambda package: "2.13.0+cu130")
    assert not has_gpu({}, tmp_path)
    (tmp_path / "nvidia0").touch()
    assert has_gpu({}, tmp_path)
    assert has_gpu({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path)
    assert not has_gpu({"CUDA_VISIBLE_DEVICES": ""}, tmp_path)
    assert not has_gpu({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path)
    monkeypatch.setattr(cpu_settings, "version", lambda package: "2.13.0+cpu")
    assert not has_gpu({}, tmp_path)


def test_nothing_is_set_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(cpu_settings, "has_gpu", lambda environment: True)
    assert missing_settings(2, {}) == {}


def test_one_process_takes_all_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6))
    assert [threads_of_each(count) for count in (1, 2, 4, 12)] == [6, 3, 1, 1]
    assert "OMP_NUM_THREADS" not in missing_settings(1, {"CUDA_VISIBLE_DEVICES": ""})


def test_a_shell_can_have_them():
    command = (
        f'eval "$({sys.executable} -m mmchat.cpu_settings 2)"; echo $OMP_WAIT_POLICY $OMP_NUM_THREADS $GLIBC_TUNABLES'
    )
    done = subprocess.run(["bash", "-c", command], env=clean_environment(), capture_output=True, text=True)
    assert done.stdout == f"passive {threads_of_each(2)} {ALLOCATOR}\n"
    wrong = subprocess.run([sys.executable, "-m", "mmchat.cpu_settings", "x"], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: expected the number of ranks")


@pytest.mark.parametrize(
    ("command", "restarts"),
    [("chat", True), ("eval", True), ("demo", True), ("recipe list", False), ("train", False), ("plan", False)],
)
def test_commands_that_run_a_model_restart(monkeypatch, capsys, command, restarts):
    calls = []
    monkeypatch.setattr(main, "restart_with_settings", lambda: calls.append(command))
    words = [*command.split(), "--help"]
    for arguments in (None, words):  # None: this process is the program
        monkeypatch.setattr(sys, "argv", ["mmchat", *words])
        try:
            main.main(arguments)
        except SystemExit as stop:
            assert not stop.code
    assert calls == [command] * restarts
