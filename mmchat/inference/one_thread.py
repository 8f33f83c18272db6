"""How many threads operators use on a CPU: all in the thread that steps the model, one everywhere else.

Each thread that runs an operator on several cores has a pool of its own. Between two operators the threads of a pool
spin for a short time (`mmchat.cpu_settings`), so that the next one starts at once. GNU OpenMP stops that when all pools
together have more threads than there are cores, and every small operator then waits until a thread is woken
(gomp_throttled_spin_count in libgomp's config/linux/wait.h). So there must be one pool.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Thread

import torch

_lock = Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside this context the operators of the calling thread, and of threads that begin meanwhile, run on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compute_alone() -> None:
    """Let the operators of the calling thread run on one core from now on. For the initializer of a pool of threads."""
    with _lock:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        # That is now the default of new threads, too. A thread that ends at once puts it back.
        other = Thread(target=use_threads, args=(threads,))
        other.start()
        other.join()


def use_threads(threads: int) -> None:
    """Let the operators of the calling thread run on several cores."""
    torch.get_num_threads()  # torch initialises a thread at its first question, and would forget what was set before
    torch.set_num_threads(threads)
