"""The process of a server: it listens, loads the model, and on SIGTERM ends what it has begun."""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

from mmchat.command_line.listening import listen
from mmchat.extras import require
from mmchat.serving.app import build_app
from mmchat.serving.keys import check_reach
from mmchat.serving.model import Assistant
from mmchat.serving.service import Service
from mmchat.serving.settings import ServeSettings

UNREAD_SECONDS = 60
"""A connection whose caller acknowledges nothing for so long is closed by the kernel."""
CONNECTION_OPTIONS = ((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000),)
FAREWELL_SECONDS = 5
"""After the drain: longest time for the last bytes to leave."""
IDLE_SECONDS = 60
"""A connection without a request is closed after so long."""


def serve(settings: ServeSettings, open_assistant: Callable[[], Assistant], say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the drain.

    Args:
        settings: What is allowed.
        open_assistant: Loads the model. It is called when the server listens already.
        say: Receives a line when the server listens, when it is ready and when it stops.

    Raises:
        UserError: A package is missing, the address cannot be used or needs keys, or the model cannot be loaded.
    """
    require("fastapi", "uvicorn", "prometheus_client")
    check_reach(settings.host, settings.keys)
    import uvicorn

    listening = listen(settings.host, settings.port, CONNECTION_OPTIONS)
    service = Service(settings, open_assistant, ready=lambda: say("mmchat serve: ready"))
    stop = _Stop(service, say)
    config = uvicorn.Config(
        build_app(service, stop.watch, stop.at_once),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=FAREWELL_SECONDS,
    )
    stop.server = uvicorn.Server(config)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"mmchat serve: {settings.name} at http://{shown}:{port}/v1 (stop with Ctrl-C); loading")
    stop.server.run(sockets=[listening])
    if service.failure is not None:
        raise service.failure


class _Stop:
    """Turns signals into a drain.

    Args:
        service: What is drained.
        say: Receives a line when it begins.
    """

    def __init__(self, service: Service, say: Callable[[str], None]) -> None:
        self.server: Any = None
        self._service, self._say = service, say
        self._drain: asyncio.Task | None = None

    def watch(self) -> None:
        """Handle signals from now on. Called in the event loop, after uvicorn has set its own handlers."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def at_once(self) -> None:
        """Stop without a drain."""
        self.server.should_exit = True

    def _on_signal(self) -> None:
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._drain_and_stop())
        else:
            self._service.cancel_all()
            self.at_once()

    async def _drain_and_stop(self) -> None:
        running, seconds = self._service.open_requests, self._service.limits.drain_seconds
        self._say(f"mmchat serve: stopping; {running} running requests get up to {seconds:g} s")
        await self._service.drain()
        self.at_once()
