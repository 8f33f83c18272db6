"""How mistakes are shown: a user's as one message and status 2, ours with their traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmchat.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


@contextmanager
def reporting(rank: int = 0) -> Iterator[None]:
    """Turn `UserError` and Ctrl-C into a message on stderr and an exit status."""
    who = f"[rank {rank}] " if rank else ""
    try:
        yield
    except UserError as error:
        print(f"{who}error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print(f"{who}interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
