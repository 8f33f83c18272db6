"""`dispatch`: a stream of items in, a stream of outcomes out, with workers that may die in between."""

import sys
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread

from mmchat.errors import UserError
from mmchat.inference.jobs.items import Item, Outcome, failure
from mmchat.inference.jobs.workers import Answered, Broken, Died, Event, Ready, Worker, WorkerFactory

AHEAD = 64
"""Items that are read before a worker has room for them."""
MOST_DEATHS = 3
"""Workers that may die over one item before it counts as failed."""
MOST_DEATHS_IN_A_ROW = 5
"""Workers that may die without an answer in between before the job gives up."""


def dispatch(items: Iterable[Item], make_workers: WorkerFactory) -> Generator[tuple[Item, Outcome], None, None]:
    """Have workers answer items. Yields each item once, in the order in which the answers come.

    A worker gets items as it has room. When all are given out, those that wait at one worker move to others that have
    room. If a worker dies, it is started again, and each of its items is given to a worker that holds nothing else, so
    that it is known which one was the reason if it happens again.

    Args:
        items: The items, read in a thread of their own, a few ahead of the workers.
        make_workers: Makes the workers.

    Raises:
        UserError: Workers die again and again, or one cannot start, or `items` raises it.
    """
    dispatcher = _Dispatcher(items, make_workers)
    try:
        yield from dispatcher.run()
    finally:
        dispatcher.close()


class _Items:
    """Reads the items in a thread, so that an answer never waits for the next item."""

    def __init__(self, items: Iterable[Item], events: "SimpleQueue[Event | Item | None]") -> None:
        self._items, self._events = items, events
        self._room = Semaphore(AHEAD)
        self._closed = False
        Thread(target=self._read, name="mmchat-items", daemon=True).start()

    def taken(self) -> None:
        """An item left the queue for a worker."""
        self._room.release()

    def close(self) -> None:
        self._closed = True
        self._room.release()

    def _read(self) -> None:
        try:
            for item in self._items:
                self._room.acquire()
                if self._closed:
                    return
                self._events.put(item)
            self._events.put(None)
        except BaseException as error:
            self._events.put(Broken(error))


class _Dispatcher:
    def __init__(self, items: Iterable[Item], make_workers: WorkerFactory) -> None:
        self._events: SimpleQueue = SimpleQueue()
        self._items = _Items(items, self._events)
        self._workers = make_workers(self._events)
        self._held: dict[Worker, dict[int, Item]] = {}
        """What every worker that is ready holds, oldest first."""
        self._waiting: deque[tuple[int, Item]] = deque()
        self._suspects: deque[tuple[int, Item]] = deque()
        """Items of workers that died."""
        self._open: dict[int, Item] = {}
        """Items without an outcome, by number."""
        self._numbers = 0
        self._ended = False
        self._deaths: Counter[int] = Counter()
        self._deaths_in_a_row = 0

    def run(self) -> Iterator[tuple[Item, Outcome]]:
        for worker in self._workers:
            worker.start()
        while not self._ended or self._open:
            event = self._events.get()
            if event is None:
                self._ended = True
            elif isinstance(event, Item):
                self._open[self._numbers] = event
                self._waiting.append((self._numbers, event))
                self._numbers += 1
            elif isinstance(event, Ready):
                self._held[event.worker] = {}
            elif isinstance(event, Answered):
                yield from self._answered(event)
            elif isinstance(event, Died):
                yield from self._died(event)
            else:
                raise event.error
            self._give_out()

    def close(self) -> None:
        self._items.close()
        for worker in self._workers:
            worker.close()

    def _answered(self, event: Answered) -> Iterator[tuple[Item, Outcome]]:
        self._deaths_in_a_row = 0
        self._deaths.pop(event.number, None)
        item = self._open.pop(event.number, None)
        for worker, held in self._held.items():
            if held.pop(event.number, None) and worker is not event.worker:
                worker.cancel(event.number)  # it was moved there, but too late
        if item is not None:
            yield item, event.outcome

    def _died(self, event: Died) -> Iterator[tuple[Item, Outcome]]:
        """Give the items of a dead worker to others and start it again."""
        lost = self._held.pop(event.worker, {})
        self._deaths_in_a_row += 1
        self._deaths.update(lost.keys())
        if self._deaths_in_a_row > MOST_DEATHS_IN_A_ROW:
            raise UserError(
                f"{event.worker} {event.how}, the {self._deaths_in_a_row}th worker to end without an answer in "
                "between; its last messages are above. If memory was short, use fewer --ranks or a smaller "
                "--batch-size. The same command resumes"
            )
        print(f"{event.worker} {event.how} and is started again; it held {len(lost)} of the images", file=sys.stderr)
        for number, item in lost.items():
            if self._deaths[number] < MOST_DEATHS:
                self._suspects.append((number, item))
                continue
            del self._open[number], self._deaths[number]
            yield item, failure(f"{MOST_DEATHS} workers ended while they worked on it; the last {event.how}")
        event.worker.start()

    def _give_out(self) -> None:
        for worker, held in self._held.items():
            if self._suspects and not held:
                self._hand(worker, *self._suspects.popleft())
        while self._waiting and (roomiest := self._roomiest()):
            self._hand(roomiest, *self._waiting.popleft())
            self._items.taken()
        if self._ended and not self._waiting:
            self._level()

    def _roomiest(self) -> Worker | None:
        """The worker with the smallest share of its window in use, if any has room."""
        open_to_all = {one: held for one, held in self._held.items() if not self._is_alone(held)}
        worker = min(open_to_all, key=lambda one: len(open_to_all[one]) / one.window, default=None)
        return worker if worker is not None and len(open_to_all[worker]) < worker.window else None

    def _is_alone(self, held: dict[int, Item]) -> bool:
        """Whether a worker holds an item over which another one died."""
        return len(held) == 1 and self._deaths[next(iter(held))] > 0

    def _hand(self, worker: Worker, number: int, item: Item) -> None:
        self._held[worker][number] = item
        worker.submit(number, item)

    def _level(self) -> None:
        """Move items that wait at one worker to another that could begin with them."""
        for thief, free in self._held.items():
            while len(free) < thief.threads and not self._is_alone(free):
                victim = max(self._held, key=lambda one: len(self._held[one]) - one.threads)
                held = self._held[victim]
                if victim is thief or len(held) <= victim.threads:
                    return
                number, item = held.popitem()
                victim.cancel(number)
                self._hand(thief, number, item)
