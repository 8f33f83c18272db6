"""`ThreadWorker`: answers items with one model, in threads; and what every worker reports to the dispatcher."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from mmchat.errors import UserError
from mmchat.inference.jobs.items import Item, Outcome, Task, failure

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator


class Worker(Protocol):
    """Answers items and reports to a queue of events. All methods return at once."""

    threads: int
    """Items that it works on at a time."""
    window: int
    """Items that it may hold: those, and some that wait."""

    def start(self) -> None:
        """Begin. `Ready` is reported when items may be submitted."""

    def submit(self, number: int, item: Item) -> None:
        """Take an item. `Answered` is reported with its number."""

    def cancel(self, number: int) -> None:
        """Forget an item if it is not being worked on. It may be reported all the same."""

    def close(self) -> None:
        """Stop at once. Nothing more is reported."""


@dataclass(frozen=True)
class Ready:
    worker: Worker


@dataclass(frozen=True)
class Answered:
    worker: Worker
    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Died:
    """A worker's process ended; `how` says so in words, as "was killed by signal 9"."""

    worker: Worker
    how: str


@dataclass(frozen=True)
class Broken:
    """Something for which the whole job ends: a mistake of the user, or a defect."""

    error: BaseException


Event = Ready | Answered | Died | Broken


def threads_for(slots: int) -> int:
    """Items to work on at a time, so that an engine of so many slots finds the next prompts prepared."""
    return slots + slots // 2 + 1


class ThreadWorker:
    """Answers items in this process, with one thread for each that is worked on: it waits for the model.

    Args:
        generator: The model.
        task: What to ask it.
        slots: Items in the model at a time.
        events: Where to report.
    """

    def __init__(self, generator: "Generator", task: Task, slots: int, events: "SimpleQueue[Event]") -> None:
        self.threads = threads_for(slots)
        self.window = self.threads + slots
        self._generator, self._task, self._events = generator, task, events
        self._pool = ThreadPoolExecutor(self.threads, "mmchat-job")
        self._futures: dict[int, Future] = {}
        self._closed = False

    def start(self) -> None:
        self._events.put(Ready(self))

    def submit(self, number: int, item: Item) -> None:
        future = self._futures[number] = self._pool.submit(self._answer, number, item)
        future.add_done_callback(lambda _: self._futures.pop(number, None))

    def cancel(self, number: int) -> None:
        if future := self._futures.get(number):
            future.cancel()

    def close(self) -> None:
        """Items that are worked on end when the model is closed."""
        self._closed = True  # no thread asks a model that would open again for it
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, number: int, item: Item) -> None:
        if self._closed:
            return
        try:
            outcome = self._task(self._generator, item)
        except UserError as error:
            outcome = failure(error)
        except BaseException as error:
            self._events.put(Broken(error))
            return
        self._events.put(Answered(self, number, outcome))


WorkerFactory = Callable[["SimpleQueue[Event]"], list[Worker]]
"""The workers of a job, which report to a queue. They are not started."""
