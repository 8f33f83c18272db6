"""Hygiene of what visitors send: bodies are limited while they arrive, files are deleted soon."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

KEPT = 1800
"""Seconds after which a file is deleted that was uploaded but not sent. Sent ones are deleted at once."""
MOST_BYTES = 2**30
"""Uploads kept at a time, of all visitors. The oldest go first."""


class Intake:
    """ASGI middleware: refuses request bodies above a size with status 413, before or while they arrive, and makes room
    before each upload.

    Args:
        app: The application.
        limit: Most bytes of a body.
        folder: Where uploads go.
    """

    def __init__(self, app: Callable, limit: int, folder: Path) -> None:
        self.app, self.limit, self.folder = app, limit, folder

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable[..., Awaitable]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limit:
            await _refuse(send, self.limit)
            return
        if scope["path"].endswith("/upload"):
            await asyncio.to_thread(sweep, self.folder)
        received = 0

        async def limited() -> dict[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:  # a chunked body, which announces no length
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, limited, send)


async def _refuse(send: Callable[..., Awaitable], limit: int) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": f"at most {limit / 2**20:.0f} MB are accepted\n".encode()})


def sweep(folder: Path, kept: float = KEPT, most_bytes: int = MOST_BYTES) -> None:
    """Delete files of a folder that are older than `kept` seconds, and the oldest ones above `most_bytes` in all."""
    files = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                state = path.stat()
                files.append((state.st_mtime, state.st_size, path))
            elif path.is_dir() and time.time() - path.stat().st_mtime > kept:
                path.rmdir()
        except OSError:
            continue  # deleted meanwhile, or not empty
    total = sum(size for _, size, _ in files)
    for changed, size, path in sorted(files):
        if time.time() - changed > kept or total > most_bytes:
            path.unlink(missing_ok=True)
            total -= size


def keep_swept(folder: Path, every: float = 60) -> None:
    """Sweep a folder from now on, in a thread that ends with the process."""

    def work() -> None:
        while True:
            time.sleep(every)
            sweep(folder)

    threading.Thread(target=work, daemon=True).start()
