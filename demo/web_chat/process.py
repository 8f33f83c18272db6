"""The process of the demo: where it listens, and how it ends. Without Gradio, whose import takes seconds."""

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from mmchat.command_line.errors import EXIT_INTERRUPTED
from mmchat.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Who connects before the page is served waits for it.

    Raises:
        UserError: The address cannot be used.
    """
    if not 0 <= port < 1 << 16:  # getaddrinfo would take the rest of a division
        raise UserError(f"cannot listen on port {port}; ports are from 0 to 65535, set another --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"cannot listen on {host}:{port} ({error}); set another --port or --host") from None
    return listening


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
