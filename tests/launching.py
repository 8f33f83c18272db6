"""Runs training as a user does: DeepSpeed's launcher, real ranks, a real run directory."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from mmchat.training.distributed.launch import free_port

ROOT = Path(__file__).resolve().parent.parent
WALL_CLOCK = {
    "seconds", "supervised_tokens_per_second", "tokens_per_second", "images_per_second", "mfu", "data_wait", "memory",
}  # fmt: skip
"""Fields of metrics.jsonl that no two runs share."""


def launch_command(config: Path, *overrides: str, ranks: int = 1) -> list[str]:
    return deepspeed_command(ROOT / "scripts" / "train.py", config, *overrides, ranks=ranks)


def deepspeed_command(script: Path, *words: Path | str, ranks: int = 1) -> list[str]:
    launcher = Path(sys.executable).parent / "deepspeed"
    ports = ["--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [str(launcher), "--quiet", *ports, str(script), *map(str, words)]


def torchrun_command(config: Path, *overrides: str, ranks: int = 1) -> list[str]:
    launcher = Path(sys.executable).parent / "torchrun"
    ports = ["--nproc_per_node", str(ranks), "--master_port", str(free_port())]
    return [str(launcher), *ports, str(ROOT / "scripts" / "train.py"), str(config), *overrides]


def mmchat_train_command(config: Path, *overrides: str, ranks: int = 1) -> list[str]:
    return [sys.executable, "-m", "mmchat.cli.main", "train", str(config), *overrides, "--ranks", str(ranks)]


def launch_environment(**changes: str) -> dict[str, str]:
    # Two ranks on two cores: one thread each, and no spinning while they wait for each other.
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "DS_ACCELERATOR": "cpu"}
    return {**os.environ, **threads, **changes}


def launch(config: Path, *overrides: str, ranks: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """Train to the end; the result's stdout holds stderr as well."""
    return run_to_end(launch_command(config, *overrides, ranks=ranks), **environment)


def run_ranks(script: Path, *words: Path | str, ranks: int, **environment: str) -> None:
    """A test's own script on so many ranks, which must succeed."""
    result = run_to_end(deepspeed_command(script, *words, ranks=ranks), PYTHONPATH=str(ROOT), **environment)
    assert result.returncode == 0, result.stdout


def run_to_end(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=launch_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )


def start(
    config: Path, *overrides: str, ranks: int = 1, log: Path | None = None, command=launch_command
) -> subprocess.Popen:
    """Start in a process group of its own, so that `kill_group` reaches the ranks as well."""
    with Path(log or os.devnull).open("w") as output:
        return subprocess.Popen(
            command(config, *overrides, ranks=ranks),
            env=launch_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_step(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    """Until metrics.jsonl holds so many training steps."""
    path, deadline = run_dir / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or sum('"loss"' in line for line in path.read_text().splitlines()) < step:
        assert process.poll() is None, f"the run ended before step {step}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes_of(word: str | Path) -> list[str]:
    """Command lines of the living processes that name `word`; data workers have that of their rank."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if str(word) in line:
            found.append(line)
    return found


def wait_until_gone(word: str | Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while left := processes_of(word):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def random_choice(options: Sequence[int]) -> int:
    """A step to kill a run at: another one every day, unless MMCHAT_TEST_SEED is set. A failing test prints both."""
    seed = int(os.environ.get("MMCHAT_TEST_SEED", date.today().toordinal()))
    chosen = random.Random(f"{seed} {os.environ.get('PYTEST_CURRENT_TEST')} {list(options)}").choice(options)
    print(f"killed at step {chosen}; repeat with MMCHAT_TEST_SEED={seed}")
    return chosen


def kill_group(process: subprocess.Popen) -> None:
    """SIGKILL to launcher and ranks at once: nothing gets to say goodbye."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_config(path: Path, **values: Any) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of training steps, without their wall-clock fields."""
    rows = [row for row in metrics(run_dir) if "loss" in row]
    return [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in rows]
