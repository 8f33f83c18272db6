"""No rank outlives the others: a thread notices that one of them died, says so once, and ends its own rank.

A collective does not return while a rank is missing: NCCL waits for its timeout, and a launcher waits 30 s for each
rank after a SIGTERM, which a rank only notes (`signals`). So each rank watches the others of its node and its launcher.
The lowest rank that is left prints what happened; SIGUSR1 and SIGUSR2 tell the others that the reason is printed.

Nothing here imports torch: the watch begins before the slow imports do.
"""

import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import NoReturn

import psutil

from mmchat.training.distributed.data_workers import describe_dead_worker
from mmchat.training.distributed.siblings import Siblings, is_alive, resume_command
from mmchat.training.distributed.signals import LAUNCHED_BY, launcher_links, orphaned

EXIT_DIED, EXIT_USER_ERROR, EXIT_TERMINATED = 1, 2, 128 + signal.SIGTERM
REASON_PRINTED = {signal.SIGUSR1: EXIT_USER_ERROR, signal.SIGUSR2: EXIT_DIED}
"""Signal from a rank that has printed why the run ends -> exit status of the rank that receives it."""
POLL = 0.5
"""Seconds between two looks at the other processes."""
CONFIRM = 1.0
"""Seconds. At the end of a run a rank may see another one leave just before it leaves itself."""
TURN = 2.0
"""Seconds in which a lower rank prints what this one has noticed, too."""
MEMORY = "perhaps memory ran out (then use fewer workers or a smaller micro_batch_size)"
LOST_CONNECTION = ("gloo/transport", "ncclRemoteError", "Connection reset by peer", "Connection closed by peer")
"""Found in errors of collectives when a rank of another node is gone."""
SHOW_CURSOR = "\x1b[?25h"
"""A progress bar hides it."""


class RankWatch:
    """Inside the `with`, the death of another rank of this node, or of the launcher, ends this process in seconds.

    An exception that leaves the `with` ends it, too, without Python's exit: that would wait, multiprocessing for data
    workers and collectives for ranks that are gone. Without a launcher nothing is watched, and the exception continues.

    Attributes:
        launchers: `signals.launcher_links`, read before anything slow.
        run_dir: set once it is known; messages then say how to resume.
    """

    def __init__(self) -> None:
        self.launchers = launcher_links()
        self.run_dir: Path | None = None
        self._rank = int(os.environ.get("RANK", "0"))
        self._siblings = Siblings() if self.launchers else None
        self._leaving = self._terminated = False
        self._received, self._wakeup = socket.socketpair()
        for end in (self._received, self._wakeup):
            end.setblocking(False)

    def __enter__(self) -> "RankWatch":
        if self._siblings:
            # The C part of a signal handler writes to it even while the main thread waits in a collective.
            signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
            signal.signal(signal.SIGTERM, self._note)
            for number in REASON_PRINTED:
                signal.signal(number, lambda *_: None)
            self._siblings.find()
            Thread(target=self._watch, daemon=True, name="rank-watch").start()
        return self

    def leave(self) -> None:
        """Call after the last collective: from here on, ranks end one by one."""
        self._leaving = True

    def __exit__(self, kind: type | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None or self._leaving:
            self._leaving = True
            return
        if dead := describe_dead_worker(error):
            self._print_and_end(f"{dead}, of rank {self._rank}; {MEMORY}", EXIT_DIED)
        if not self._siblings:
            for worker in active_children():
                worker.kill()
            return
        if isinstance(error, SystemExit):  # its reason is on the screen
            self._end(int(error.code or 0))
        time.sleep(POLL + CONFIRM + TURN)  # if a collective failed, the thread finds the rank that is gone
        if lost := _lost_connection(error):
            self._report(f"rank {self._rank} lost the connection to a rank of another node ({lost})", EXIT_DIED)
        traceback.print_exception(error)
        self._end(EXIT_DIED)

    def _note(self, *_: object) -> None:
        self._terminated = True

    def _watch(self) -> None:
        while not self._leaving:
            self._look(self._signals(POLL))

    def _signals(self, timeout: float) -> bytes:
        """Numbers of the signals that came; ends this process if another rank has printed why."""
        ready, *_ = select.select([self._received], [], [], timeout)
        numbers = b""
        with suppress(BlockingIOError):  # the other thread has read them
            numbers = self._received.recv(1024) if ready else b""
        for number, status in REASON_PRINTED.items():
            if number in numbers:
                os._exit(status)
        return numbers

    def _listen(self, seconds: float) -> None:
        """Wait for another rank to print why the run ends."""
        last = time.monotonic() + seconds
        while (left := last - time.monotonic()) > 0:
            self._signals(left)

    def _look(self, numbers: bytes) -> None:
        self._siblings.find()
        handled = signal.getsignal(signal.SIGTERM) != self._note  # by the training loop, which saves (`StopSignals`)
        if not handled and not self._leaving and orphaned(self.launchers):
            self._end_orphaned()
        dead = self._siblings.first_dead()
        if dead is not None:
            self._listen(CONFIRM)
            if not self._leaving:
                self._report(f"rank {dead} died or was killed; {MEMORY}", EXIT_DIED)
        if not self._leaving and (self._terminated or (signal.SIGTERM in numbers and not handled)):
            why = "from a user, or from the launcher because another rank died"
            self._report(f"rank {self._rank} received SIGTERM {why}", EXIT_TERMINATED)

    def _end_orphaned(self) -> NoReturn:
        if self._mmchat_train_is_left():  # only what is between it and the ranks died, and it says so itself
            os._exit(EXIT_TERMINATED)
        self._report("the launcher died or was killed", EXIT_TERMINATED)

    def _report(self, what: str, status: int) -> NoReturn:
        """Leave it to a lower rank to print what both have noticed; if it neither does nor ends, print it here."""
        if self._siblings and self._siblings.lower_is_alive():
            self._listen(TURN)
            if not self._siblings.lower_is_alive():
                self._end(status)
        self._print_and_end(what, status)

    def _print_and_end(self, what: str, status: int) -> NoReturn:
        cursor = SHOW_CURSOR if sys.stderr.isatty() else ""
        next_step = what_next(self.run_dir, resume_command(self.run_dir or Path()))
        message = f"{cursor}\nerror: {what}. All ranks end. {next_step}\n"
        os.write(sys.stderr.fileno(), message.encode())
        self._end(status)

    def _end(self, status: int) -> NoReturn:
        """End this process at once and tell the others that they need not say why."""
        number = signal.SIGUSR1 if status == EXIT_USER_ERROR else signal.SIGUSR2
        if self._siblings:
            self._siblings.find()
            self._siblings.signal(number)
            self._tell_mmchat_train(number)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)

    def _tell_mmchat_train(self, number: signal.Signals) -> None:
        above = int(os.environ.get(LAUNCHED_BY, "0"))
        if above and above == self.launchers[-1][1]:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(above, number)

    def _mmchat_train_is_left(self) -> bool:
        above = int(os.environ.get(LAUNCHED_BY, "0"))
        with suppress(psutil.Error):
            return above > 0 and is_alive(psutil.Process(above))
        return False


def what_next(run_dir: Path | None, resume: str) -> str:
    """A sentence: `resume` if the run has a directory already, else to start it again."""
    started = run_dir is not None and (run_dir / "config.yaml").exists()
    return f"Resume with: {resume}" if started else "Start it again"


def _lost_connection(error: BaseException) -> str | None:
    """The part of a collective's error that says how the connection to another rank broke; None for other errors."""
    text = str(error)
    if not isinstance(error, RuntimeError) or not any(sign in text for sign in LOST_CONNECTION):
        return None
    return text.splitlines()[0].rpartition("] ")[2] if text.startswith("[") else text.splitlines()[0]
