"""Data workers: they end with their rank and not before, and their death has a name."""

import ctypes
import os
import re
import signal
import sys
import time
from multiprocessing import parent_process
from types import TracebackType

from mmchat.training.distributed.signals import SIGNALS

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when its parent dies. Linux only."""
LOOKS, BETWEEN_LOOKS = 20, 0.05
"""How often, and after how many seconds, torch is asked for a dead worker once a connection broke."""
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")
"""What torch's DataLoader raises in the rank."""


def start_data_worker(_: int) -> None:
    """First call in a data worker (`worker_init_fn`).

    Launchers send a rank's signals to its workers, too, which the rank still needs for the step in progress: ignored.
    A worker whose rank was killed would keep the memory of its batches, and the lock of the run directory.
    """
    signal.set_wakeup_fd(-1)  # inherited from the rank
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _print_unless_disconnected
    end_with_parent()


def _print_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For the thread of multiprocessing that hands tensors to the rank, which may die in the middle."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def end_with_parent() -> None:
    """SIGKILL for this process as soon as its parent is dead; elsewhere than on Linux torch looks every 5 s."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    parent = parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before that call
        os._exit(1)


def describe_dead_worker(error: BaseException) -> str | None:
    """`"data worker 12 died or was killed (Killed)"` if `error` comes of a dead worker, else None.

    That is torch's report, or a connection that broke while the worker handed over a batch.
    """
    report = _report_of_torch() if isinstance(error, ConnectionError | EOFError) else error
    found = _DEAD_WORKER.match(str(report)) if isinstance(report, RuntimeError) else None
    if found is None:
        return None
    return f"data worker {found[1]} died or was killed" + (f" ({found[2]})" if found[2] else "")


def _report_of_torch() -> BaseException | None:
    """What torch says about dead workers. A process closes its connections shortly before it counts as dead."""
    import torch

    try:
        for _ in range(LOOKS):
            torch._C._error_if_any_worker_fails()
            time.sleep(BETWEEN_LOOKS)  # torch's handler of SIGCHLD may raise the same report here
    except RuntimeError as report:
        return report
    return None
