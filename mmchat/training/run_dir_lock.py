"""One run at a time in a run directory: rank 0 holds a lock on a file in it until its process ends, however it ends."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mmchat.errors import UserError
from mmchat.files import writing
from mmchat.training.distributed import collectives

LOCK = ".lock"
"""File in the run directory: JSON with pid and host of the process that holds it, or held it last."""
PATIENCE = 5.0
"""Seconds in which a run that was just killed lets go: its data workers, which inherit the file, end after it."""
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""


@contextmanager
def locked(run_dir: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Inside the `with`, no other run may start in `run_dir`. All ranks call this; rank 0 holds the lock.

    Args:
        report: called with a line if the file system has no locks.

    Raises:
        SharedError: another process holds the lock, or the directory cannot be written.
    """
    held: list[IO[str]] = []
    collectives.from_rank_0(lambda: held.append(_lock(run_dir, report)))
    try:
        yield
    finally:
        for file in held:
            with suppress(OSError), file:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough while a data worker has the same file open


def _lock(run_dir: Path, report: Callable[[str], None]) -> IO[str]:
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("a+")
    try:
        _wait_for(file, run_dir)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        report(f"{run_dir}: its file system has no locks ({error.strerror}); do not start a second run there")
        return file
    with writing(run_dir / LOCK):
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
    return file


def _wait_for(file: IO[str], run_dir: Path) -> None:
    last = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > last:
                raise UserError(
                    f"run_dir {run_dir} is in use by {_holder(file)}; wait until that run has ended, stop it, or name "
                    "another run_dir"
                ) from None
            time.sleep(0.2)


def _holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        holder = json.load(file)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # it has not yet written who it is
        return "another run"
