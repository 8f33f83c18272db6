"""The other ranks of this node, found below the parent of all: their launcher, or what adopts them if it is gone.

A launcher announces in the environment how many there are, not their process ids.
"""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

SEARCH = 60.0
"""Seconds in which a launcher has started all its ranks."""


class Siblings:
    """The processes of the other ranks of this node."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._rank = int(environment["RANK"])
        self._processes: dict[int, psutil.Process] = {}
        self._search_until = time.monotonic() + SEARCH

    def find(self) -> None:
        """Look for ranks that are not known yet. They are started one after another, so this is called repeatedly."""
        if (
            len(self._processes) + 1 >= ranks_on_this_machine(self._environment)
            or time.monotonic() > self._search_until
        ):
            return
        with suppress(psutil.Error):
            for process in psutil.Process(os.getppid()).children():
                rank = self._rank_of(process)
                if rank is not None:
                    self._processes.setdefault(rank, process)

    def first_dead(self) -> int | None:
        """The lowest rank that was found and has ended, or None."""
        return next((rank for rank in sorted(self._processes) if not is_alive(self._processes[rank])), None)

    def lower_is_alive(self) -> bool:
        """Whether there is a rank below this one."""
        return any(rank < self._rank and is_alive(process) for rank, process in self._processes.items())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to each."""
        for process in self._processes.values():
            with suppress(psutil.Error):
                process.send_signal(number)

    def _rank_of(self, process: psutil.Process) -> int | None:
        """The rank of a process of this run; None for this rank itself and for all other processes."""
        try:
            theirs = process.environ()
            rank = int(theirs["RANK"])
        except (psutil.Error, OSError, KeyError, ValueError):  # not a rank, or one that has just been forked
            return None
        same_run = theirs.get("MASTER_PORT") == self._environment.get("MASTER_PORT")
        return rank if same_run and rank != self._rank else None


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs: not a zombie, nor another process with its number."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def ranks_on_this_machine(environment: Mapping[str, str] = os.environ) -> int:
    """Their number, as DeepSpeed's launcher, `torchrun` or Slurm announces it; 1 without a launcher."""
    announced = (environment.get(name) for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"))
    return int(next(filter(None, announced), 1))


def resume_command(run_dir: Path, environment: Mapping[str, str] = os.environ) -> str:
    """The command that resumes this run."""
    ranks = int(environment.get("WORLD_SIZE", "1"))
    if ranks_on_this_machine(environment) < ranks:
        return "the same launch command and --resume"
    return f"mmchat train {run_dir / 'config.yaml'} --ranks {ranks} --resume"
