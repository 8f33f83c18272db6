"""Ctrl-C, SIGTERM and a launcher that died: noted when they come, obeyed by all ranks at the end of the same step.

Launchers do not agree on what they do with a signal. `torchrun` hands it on to every rank; DeepSpeed's `launch`
tells one rank after the other and gives each 30 s; SIGTERM to `deepspeed` kills only its runner, and neither
`launch` nor the ranks hear of it. So a signal only raises a flag here, which travels with a sum over ranks that
each step makes anyway, and every rank looks whether the processes that launched it are still there.
"""

import os
import signal
import time
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_CTRL_C = 1.0
"""Seconds; within them a second SIGINT is the first one, which the terminal and the launcher both delivered."""
RUNNER, LAUNCH = "deepspeed.launcher.runner", "deepspeed.launcher.launch"
"""DeepSpeed's modules: the `deepspeed` command, and the process it starts on each node, which starts the ranks."""
LAUNCHED_BY = "MMCHAT_LAUNCHED_BY"
"""Environment variable that `mmchat train` sets: DeepSpeed's runner is then its child and must not outlive it."""


class StopSignals:
    """Inside a `with`, SIGINT and SIGTERM raise a flag instead of ending the process; a second Ctrl-C ends it at once.

    Outside, and for ranks above 0 during an error, they do what they always did.
    """

    def __init__(self) -> None:
        self._received = dict.fromkeys(SIGNALS, False)
        self._first_ctrl_c = 0.0
        self._before: dict[int, signal.Handlers] = {}
        self._launchers = launcher_links()

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # A rank that stops as it was told must not be hurt by the same signal coming once more from the launcher.
        if kind is not None or not any(self._received.values()):
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def flags(self) -> list[int]:
        """[interrupted, told to end], 0 or 1 each, of this rank alone; the sum over ranks goes to `exit_status`."""
        ended = self._received[signal.SIGTERM] or orphaned(self._launchers)
        return [int(self._received[signal.SIGINT]), int(ended)]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._received[signal.SIGINT] and now - self._first_ctrl_c > SAME_CTRL_C:
                os._exit(128 + signal.SIGINT)
            self._first_ctrl_c = self._first_ctrl_c or now
        self._received[signal.Signals(number)] = True


def exit_status(flags: list[float]) -> int:
    """130 if any rank was interrupted, 143 if any was told to end or lost its launcher, else 0.

    Both at once is Ctrl-C: a launcher answers it with SIGTERM to its ranks.
    """
    interrupted, ended = flags
    return 128 + signal.SIGINT if interrupted else 128 + signal.SIGTERM if ended else 0


def ignore_stop_signals(_: int) -> None:
    """For data workers, whom a terminal and DeepSpeed's launcher signal too: they end with their rank, not before."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def launcher_links() -> list[tuple[int, int]]:
    """(child, parent) from this rank up to the topmost process of its launcher; empty without a launcher.

    The links end there: a run started under nohup outlives the shell above it, and shall.
    """
    if "RANK" not in os.environ:
        return []
    rank = psutil.Process()
    links, parent = [(rank.pid, rank.ppid())], rank.parent()
    while parent and (above := parent.parent()) and _is_launched_by(parent, above):
        links.append((parent.pid, above.pid))
        parent = above
    return links


def _is_launched_by(process: psutil.Process, above: psutil.Process) -> bool:
    if os.environ.get(LAUNCHED_BY) == str(above.pid):
        return True
    is_launch = LAUNCH in process.cmdline()
    return is_launch and any("deepspeed" in word for word in above.cmdline())


def orphaned(links: list[tuple[int, int]]) -> bool:
    """Whether a link is broken: who loses its parent is given another one."""
    try:
        return any(psutil.Process(child).ppid() != parent for child, parent in links)
    except psutil.NoSuchProcess:
        return True
