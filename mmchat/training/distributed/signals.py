"""Ctrl-C, SIGTERM and the death of the launcher: recorded at once, acted on by all ranks at the end of the same step.

Launchers treat signals differently. `torchrun` forwards them to every rank. DeepSpeed's `launch` forwards them to one
rank after the other and waits up to 30 s for each. SIGTERM to `deepspeed` kills only its runner; neither `launch` nor
the ranks receive it. So a signal only sets a flag here. The flags are added to a sum over ranks that every step
computes anyway, and every rank checks whether the processes that launched it still run.
"""

import os
import signal
import time
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_CTRL_C = 1.0
"""Seconds within which a second SIGINT is the same Ctrl-C, delivered by both the terminal and the launcher."""
RUNNER, LAUNCH = "deepspeed.launcher.runner", "deepspeed.launcher.launch"
"""DeepSpeed's modules: the `deepspeed` command, and the process it starts on each node, which starts the ranks."""
LAUNCHED_BY = "MMCHAT_LAUNCHED_BY"
"""Environment variable that `mmchat train` sets to its process id: DeepSpeed's runner must not outlive it."""


class StopSignals:
    """Inside the `with`, SIGINT and SIGTERM set a flag instead of ending the process; a second Ctrl-C ends it at once.

    The previous handlers are restored afterwards, unless the run stops because of a signal.

    Args:
        launchers: `launcher_links` as they were when this rank started; None: as they are now.
    """

    def __init__(self, launchers: list[tuple[int, int]] | None = None) -> None:
        self._received = dict.fromkeys(SIGNALS, False)
        self._first_ctrl_c = 0.0
        self._previous_handlers: dict[int, signal.Handlers] = {}
        self._launchers = launcher_links() if launchers is None else launchers

    def __enter__(self) -> "StopSignals":
        self._previous_handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # The launcher may send the same signal again to a rank that is already stopping; keep ignoring it.
        if kind is not None or not any(self._received.values()):
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)

    def flags(self) -> list[int]:
        """[interrupted, terminated] on this rank, 0 or 1 each; pass their sums over ranks to `exit_status`."""
        terminated = self._received[signal.SIGTERM] or orphaned(self._launchers)
        return [int(self._received[signal.SIGINT]), int(terminated)]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._received[signal.SIGINT] and now - self._first_ctrl_c > SAME_CTRL_C:
                os._exit(128 + signal.SIGINT)
            self._first_ctrl_c = self._first_ctrl_c or now
        self._received[signal.Signals(number)] = True


def exit_status(flags: list[float]) -> int:
    """130 if any rank received SIGINT, 143 if any received SIGTERM or lost its launcher, else 0.

    Both flags together mean Ctrl-C: launchers react to it by sending SIGTERM to their ranks.

    Args:
        flags: `StopSignals.flags`, summed over ranks.
    """
    interrupted, terminated = flags
    return 128 + signal.SIGINT if interrupted else 128 + signal.SIGTERM if terminated else 0


def launcher_links() -> list[tuple[int, int]]:
    """(child, parent) process ids from this rank up to the topmost process of its launcher; empty without a launcher.

    Shells above the launcher are not included: a run started under nohup is meant to outlive them. If a launcher is
    gone already, there is a link that does not hold (`orphaned`).
    """
    if "RANK" not in os.environ:
        return []
    rank = psutil.Process()
    links, parent = [(rank.pid, rank.ppid())], rank.parent()
    while parent and (above := parent.parent()) and _is_launched_by(parent, above):
        links.append((parent.pid, above.pid))
        parent = above
    started_by = int(os.environ.get(LAUNCHED_BY, "0"))
    without_runner = parent is not None and LAUNCH in parent.cmdline() and _is_reaper(parent.ppid())
    if without_runner or _is_reaper(links[-1][1]) or (started_by and started_by not in dict(links).values()):
        links.append((rank.pid, started_by))
    return links


def _is_launched_by(process: psutil.Process, above: psutil.Process) -> bool:
    if os.environ.get(LAUNCHED_BY) == str(above.pid):
        return True
    is_launch = LAUNCH in process.cmdline()
    return is_launch and any("deepspeed" in word for word in above.cmdline())


def _is_reaper(pid: int) -> bool:
    """Whether a process took the place of a launcher that is gone. All launchers are Python or srun."""
    if not pid:  # the parent of process 1
        return False
    reaper = psutil.Process(pid)
    is_reaper = pid == 1 or reaper.name() == "systemd"
    return is_reaper and not any("python" in word or "deepspeed" in word for word in reaper.cmdline())


def orphaned(links: list[tuple[int, int]]) -> bool:
    """Whether a process in `links` has lost its parent; the system then gives it another parent."""
    try:
        return any(psutil.Process(child).ppid() != parent for child, parent in links)
    except psutil.NoSuchProcess:
        return True
