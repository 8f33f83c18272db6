"""Process a long list in chunks, in several processes, with a progress bar. Results come in order."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from mmchat.errors import UserError
from mmchat.progress import progress_bar

Result = TypeVar("Result")
Chunk = TypeVar("Chunk", bound=Sequence[int])
"""Numbers of items."""
SMALL = 4_000
"""Fewer items than this are finished before worker processes have started."""


def default_workers(items: int) -> int:
    """Worker processes for `items` items: one per available core, or 0 (this process) for short lists."""
    return 0 if items < SMALL else len(os.sched_getaffinity(0))


def map_chunks(
    work: Callable[[Chunk], Result],
    chunks: Sequence[Chunk],
    title: str,
    workers: int | None = None,
) -> Iterator[tuple[Chunk, Result]]:
    """Apply `work` to every chunk and yield (chunk, result) in order.

    Only a few results are held, so memory does not grow with the list.

    Args:
        work: Picklable; sent to each process once.
        chunks: The numbers of the items of each chunk.
        title: Title of the progress bar.
        workers: Number of processes. 0 works in this process; None decides by the number of items.

    Raises:
        UserError: A worker was killed, for example by the kernel when memory ran out.
    """
    total = sum(map(len, chunks))
    workers = default_workers(total) if workers is None else workers
    with progress_bar(title, total) as bar:
        done = _in_processes(work, chunks, workers) if workers else map(work, chunks)
        for chunk, result in zip(chunks, done, strict=True):
            bar.advance(len(chunk))
            yield chunk, result


def chunk_ranges(total: int, size: int) -> list[range]:
    """range(total) in ranges of `size`, the last perhaps shorter."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _in_processes(work: Callable[[Chunk], Result], chunks: Sequence[Chunk], workers: int) -> Iterator[Result]:
    # Spawned, not forked: the threads of the tokenizers library would deadlock after a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _receive, (work,))
    waiting: deque[Future] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_do, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps because memory ran out; start again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any]
"""The work of this worker process, set by `_receive`."""


def _receive(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit with the parent process: an orphaned worker would wait for work forever and hold its memory."""
    if (parent := parent_process()) is not None:
        parent.join()
    os._exit(1)


def _do(chunk: Sequence[int]) -> Any:
    return _work(chunk)
