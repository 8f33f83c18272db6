"""How the process of the demo ends."""

import os
import shutil
import signal
import sys
from pathlib import Path

from mmchat.command_line.errors import EXIT_INTERRUPTED


def end_on_signals(folder: Path) -> None:
    """On SIGINT and SIGTERM delete a folder and end, whatever the threads do.

    Python's own end would wait for threads that answer, or take the interpreter from them within a forward, which
    aborts the process.
    """

    def end(number: int, *_frame: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if number == signal.SIGINT:
            print("interrupted", file=sys.stderr, flush=True)
        os._exit(EXIT_INTERRUPTED if number == signal.SIGINT else 0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
