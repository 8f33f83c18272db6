"""How mistakes are shown: a user's as one message and status 2, ours with their traceback."""

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mmchat.errors import SharedError, UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
OTHER_RANKS_WAIT = 4.0
"""Seconds; DeepSpeed's launcher looks at its processes once a second."""


@contextmanager
def reporting(rank: int = 0) -> Iterator[None]:
    """Turn `UserError`, a full disk and Ctrl-C into a message on stderr and an exit status.

    A mistake in a config is met by every rank. Ranks above 0 wait before they speak: if rank 0 has said it,
    the launcher ends them meanwhile, and the user reads it once. Of a `SharedError` they never speak.
    """
    who = f"[rank {rank}] " if rank else ""
    try:
        yield
    except UserError as error:
        if rank:
            time.sleep(OTHER_RANKS_WAIT)
        if not (rank and isinstance(error, SharedError)):
            print(f"{who}error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(f"{who}error: {error.strerror}{where}; make room and start again", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print(f"{who}interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
