"""Exit statuses: a user's mistake is one message and status 2, a defect of mmchat keeps its traceback."""

import errno
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mmchat.errors import SharedError, UserError
from mmchat.files import CANNOT_WRITE

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
"""128 + SIGPIPE, as the shell reports a program that wrote to a closed pipe."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
OTHER_RANKS_WAIT = 4.0
"""Seconds. DeepSpeed's launcher polls its processes once a second."""
RANK_0_PRINTS = 20.0
"""Seconds in which rank 0 closes what it has open and prints an error that all ranks raise together."""


@contextmanager
def reporting(rank: int = 0) -> Iterator[None]:
    """Turn `UserError`, disks that cannot be written, a closed stdout and Ctrl-C into a message and an exit status.

    Every rank meets the same mistake in a config. Ranks above 0 wait before they print: if rank 0 has already printed
    it, it ends them in the meantime (`training.distributed.rank_watch`), and the user reads it once. They never print a
    `SharedError`.
    """
    prefix = f"[rank {rank}] " if rank else ""
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except UserError as error:
        is_shared = isinstance(error, SharedError)
        if rank:
            time.sleep(RANK_0_PRINTS if is_shared else OTHER_RANKS_WAIT)
        if not (rank and is_shared):
            print(f"{prefix}error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's exit would raise once more
            sys.exit(EXIT_PIPE_CLOSED)
        if error.errno not in NO_ROOM and not (error.errno in CANNOT_WRITE and error.filename):
            raise
        file = f" for {error.filename}" if error.filename else ""
        hint = "; make room and start again" if error.errno in NO_ROOM else ""
        print(f"{prefix}error: {error.strerror}{file}{hint}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print(f"{prefix}interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)


def _stdout_is_closed() -> bool:
    """Whether nobody reads stdout any more, as in `mmchat --help | head`. Other broken pipes are defects."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
