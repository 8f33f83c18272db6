"""`RankWorker`: a process of its own with a model of its own. Started again, it is a new process."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from mmchat.cpu_settings import threads_of_each
from mmchat.errors import UserError
from mmchat.inference.jobs.items import Item, Task
from mmchat.inference.jobs.workers import Answered, Broken, Died, Event, Ready, ThreadWorker, Worker, threads_for

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
DEFECT = 1
"""Exit status of a worker after an exception that is not the user's mistake."""


def rank_workers(
    open_generator: Callable[[int], "Generator"], task: Task, slots: int, ranks: int, events: "SimpleQueue[Event]"
) -> list[Worker]:
    """Workers of a job, as `dispatch` takes them.

    Args:
        open_generator: Opens the model of a rank. Called in its process; it and `task` are pickled.
        task: What to ask it.
        slots: Items in one model at a time.
        ranks: Number of processes.
        events: Where to report.
    """
    return [RankWorker(rank, partial(open_generator, rank), task, slots, ranks, events) for rank in range(ranks)]


@dataclass(eq=False)
class RankWorker:
    """The parent's end. What the process says comes through a pipe, so its death is the end of that pipe."""

    rank: int
    open_generator: Callable[[], "Generator"] = field(repr=False)
    task: Task = field(repr=False)
    slots: int
    ranks: int
    events: "SimpleQueue[Event]" = field(repr=False)

    def __post_init__(self) -> None:
        self.threads = threads_for(self.slots)
        self.window = self.threads + self.slots
        self.process: Any = None
        self._closed = False

    def __str__(self) -> str:
        return f"worker {self.rank} (process {self.process.pid})"

    def start(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        arguments = (theirs, self.open_generator, self.task, self.slots)
        self.process = _SPAWN.Process(target=_work, args=arguments, name=f"mmchat-{self.rank}", daemon=True)
        with _environment(OMP_NUM_THREADS=str(threads_of_each(self.ranks))), _sigint_ignored():
            self.process.start()
        theirs.close()
        Thread(target=self._receive, args=(self._pipe, self.process), name="mmchat-receive", daemon=True).start()

    def submit(self, number: int, item: Item) -> None:
        self._send((number, item))

    def cancel(self, number: int) -> None:
        self._send((number, None))

    def close(self) -> None:
        self._closed = True
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it is dead, which `_receive` reports
            self._pipe.send(message)

    def _receive(self, pipe: Connection, process: Any) -> None:
        """Report what a process says, and at last how it ended."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = pipe.recv()
                if message is None:
                    self.events.put(Ready(self))
                elif isinstance(message, str):
                    self.events.put(Broken(UserError(message)))
                else:
                    self.events.put(Answered(self, *message))
        process.join()
        if not self._closed:
            code = process.exitcode
            self.events.put(Died(self, f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"))


# The process


def _work(pipe: Connection, open_generator: Callable[[], "Generator"], task: Task, slots: int) -> None:
    """Answer items until the parent closes its end of the pipe, on purpose or by its death."""
    Thread(target=_end_with_parent, daemon=True).start()
    events: SimpleQueue[Event] = SimpleQueue()
    Thread(target=_report, args=(pipe, events), daemon=True).start()
    try:
        worker = ThreadWorker(open_generator(), task, slots, events)
    except UserError as error:
        events.put(Broken(error))
        threading.Event().wait()  # until the parent, which gives up, ends this process
    worker.start()
    try:
        while True:
            number, item = pipe.recv()
            if item is None:
                worker.cancel(number)
            else:
                worker.submit(number, item)
    except (EOFError, OSError):
        os._exit(0)  # no thread is waited for


def _end_with_parent() -> None:
    """A model that is being opened does not outlive the parent either."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def _report(pipe: Connection, events: "SimpleQueue[Event]") -> None:
    """Send the worker's events to the parent."""
    while True:
        event = events.get()
        try:
            if isinstance(event, Answered):
                pipe.send((event.number, event.outcome))
            elif isinstance(event, Ready):
                pipe.send(None)
            elif isinstance(event, Broken) and isinstance(event.error, UserError):
                pipe.send(str(event.error))
            elif isinstance(event, Broken):
                traceback.print_exception(event.error)
                os._exit(DEFECT)
        except OSError:
            os._exit(0)  # the parent is gone


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables for a process that is started, unless they are set."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """A process started here never sees Ctrl-C, which a terminal sends to all: its parent ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
