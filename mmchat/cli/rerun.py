"""`mmchat rerun`: the first steps of a run once more, and whether their losses are the same."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from mmchat.command_line.arguments import positive
from mmchat.errors import UserError

EXAMPLE = "mmchat rerun runs/quickstart --check"
LAST_STEP = "MMCHAT_RERUN_STEPS"
"""Tells a rank after which step to end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(
        "Trains the first steps again, from the config, seed, model and data that the run directory names, in a folder "
        "of its own, and compares losses and gradient norms bit for bit. Also says which data, weights, packages and "
        "devices are not those of the run. The run itself is not changed. Exit status 0: equal; 1: different."
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory")
    parser.add_argument("--check", action="store_true", required=True, help="compare; there is nothing else it can do")
    parser.add_argument("--steps", type=positive, default=5, metavar="N", help="how many steps; default: 5")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the second run here; default: it is deleted")


def run(arguments: argparse.Namespace) -> None:
    from mmchat.files import read_json
    from mmchat.training.config import load_written_config
    from mmchat.training.rerun import compare_run_dirs, environment_changes, known_changes

    run_dir = arguments.run_dir
    for name in ("config.yaml", "metrics.jsonl", "environment.json"):
        if not (run_dir / name).is_file():
            raise UserError(f"{run_dir} is not the directory of a run that has begun: it has no {name}")
    config = load_written_config(run_dir / "config.yaml")
    for line in known_changes(config, run_dir):
        print(line)
    environment = read_json(run_dir / "environment.json")
    with tempfile.TemporaryDirectory(prefix="mmchat-rerun-") as folder:
        second = arguments.out or Path(folder) / "run"
        _train(run_dir / "config.yaml", second, arguments.steps, environment)
        found = compare_run_dirs(run_dir, second, arguments.steps)
        if found.first is not None:
            for line in environment_changes(run_dir, second):
                print(line)
    print(found)
    if found.first is not None:
        sys.exit(1)


def _train(config: Path, run_dir: Path, steps: int, environment: dict) -> None:
    """The first steps, on as many ranks and threads as the run had.

    Raises:
        UserError: The second run failed, or its directory holds a run.
    """
    from mmchat.training.distributed.launch import launch_command, launch_environment, rank_devices

    devices = rank_devices(environment["ranks"])
    keys = ["--run_dir", str(run_dir), "--resume", "false", "--validation", "null", "--monitoring.trackers", "[]"]
    threads = re.search(r"cpu, (\d+) threads", environment["device"])
    settings = {**os.environ, **({"OMP_NUM_THREADS": threads[1]} if threads else {}), LAST_STEP: str(steps)}
    command = launch_command(devices, __name__, [str(config), *keys])
    status = subprocess.run(command, env=launch_environment(len(devices), settings), check=False).returncode
    if status:
        raise UserError(f"the second run ended with exit status {status}; what it printed says why")


if __name__ == "__main__":
    from mmchat.cli.train import train_main

    train_main(last_step=int(os.environ[LAST_STEP]))
