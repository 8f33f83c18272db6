"""The first layer of the server: who may ask, how often, and how much may arrive. Nothing large is read before that.

Plain ASGI, because a middleware of Starlette's would sit between an answer and its caller's disconnect.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from mmchat.serving.errors import ApiError
from mmchat.serving.keys import KeyRing, is_loopback
from mmchat.serving.service import Service, not_ready
from mmchat.serving.settings import BODY_SILENCES
from mmchat.serving.work import Work

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Result = TypeVar("Result")

ASKED = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Paths that take a body and give answers of the model."""
ROUTES = frozenset({*ASKED, "/v1/models", "/health", "/ready", "/metrics", "/openapi.json"})
"""Paths that metrics name; all others are `other`."""
VISIT = "mmchat_visit"
"""Key of the scope."""


class CallerGoneError(Exception):
    """The caller left before the answer."""


class Visit:
    """One request, from its first byte to its last. Whatever it holds is given back at its end."""

    def __init__(self, service: Service, receive: Receive) -> None:
        self.since = time.monotonic()
        self.work: Work | None = None
        """What the model makes for this request."""
        self._service, self._receive = service, receive
        self._held = 0
        self._body: bytes | None = None

    async def read_body(self) -> None:
        """Read the whole body.

        Raises:
            ApiError: 408, 413 or 429: it is too slow, too large, or others hold too much.
            CallerGoneError: The caller left.
        """
        limits = self._service.limits
        try:
            async with asyncio.timeout(BODY_SILENCES * limits.body_seconds):
                self._body = b"".join([chunk async for chunk in self._chunks()])
        except TimeoutError:
            message = f"nothing of the body came for {limits.body_seconds:g} s, or all of it took too long"
            raise ApiError(408, message, "body_too_slow") from None

    async def _chunks(self):
        limits, signs, more = self._service.limits, 0, True
        while more:
            async with asyncio.timeout(limits.body_seconds):
                event = await self._receive()
            if event["type"] == "http.disconnect":
                raise CallerGoneError
            chunk, more = event.get("body", b""), event.get("more_body", False)
            if self._held + len(chunk) > limits.body_bytes:
                raise too_large(limits.body_bytes)
            self._service.bodies.take(len(chunk))
            self._held += len(chunk)
            # Base64 has none of these signs, so only text counts. Parsing millions of values would stop all others.
            signs += sum(chunk.count(sign) for sign in (b",", b"[", b"{"))
            if signs > limits.text_characters:
                raise ApiError(
                    413, f"the body has more than {limits.text_characters:,} of the signs , [ {{", "body_too_complex"
                )
            yield chunk

    async def receive(self) -> Event:
        """The body in one event, then what the server says."""
        if self._body is None:
            return await self._receive()
        event, self._body = {"type": "http.request", "body": self._body, "more_body": False}, None
        return event

    async def unless_gone(self, work: Awaitable[Result]) -> Result | None:
        """The result of some work, or None if the caller leaves first; the work is cancelled then.

        Call it after the body was read.
        """
        task, watch = asyncio.ensure_future(work), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for one in (task, watch):
                one.cancel()

    async def _gone(self) -> None:
        """Wait until the caller leaves."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def end(self) -> None:
        """Cancel what the model still makes, and give back what was held."""
        if self.work is not None:
            self.work.cancel()
        # References in a circle would keep the images until Python's next full collection, minutes later.
        self.work = self._body = None
        self._service.bodies.give(self._held)
        self._held = 0


class Gate:
    """Refuses what must not reach the routes, and counts all requests.

    Args:
        app: What lies behind.
        service: The served model.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], service: Service) -> None:
        self._app, self._service = app, service
        self._keys = KeyRing(service.settings.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = scope[VISIT] = Visit(self._service, receive)
        answer = _Answer(send, self._service)
        asked = scope["path"] in ASKED and scope["method"] == "POST"
        self._service.open_requests += asked
        try:
            self._admit(scope, asked)
            if asked:
                await visit.read_body()
            await self._app(scope, visit.receive, answer.send)
        except ApiError as error:
            await answer.refuse(error)
        except CallerGoneError:
            self._service.metrics.disconnected.inc()
        except Exception:  # a defect; its answer is made in front of this layer
            answer.status = answer.status or "500"
            raise
        finally:
            del scope[VISIT]
            visit.end()
            self._service.open_requests -= asked
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._service.metrics.requests.labels(route, answer.status or "none").inc()

    def _admit(self, scope: Scope, asked: bool) -> None:
        """Raises ApiError for a request that is not answered, by its headers alone."""
        headers = {name.lower(): value for name, value in reversed(scope["headers"])}
        guarded = scope["path"].startswith("/v1") or scope["path"] == "/metrics"
        self._check_host(headers.get(b"host"))
        caller = self._keys.caller(headers.get(b"authorization"))
        if guarded and caller is None:
            raise ApiError(401, "send a valid API key as `Authorization: Bearer KEY`", "invalid_api_key")
        if not asked:
            return
        if self._service.state != "ready":
            raise not_ready(self._service.state)
        assert caller is not None
        self._service.rate.take(caller)
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            # Also what a page of another site can send without asking first (CORS): it must not.
            raise ApiError(415, "send the body as Content-Type: application/json", "unsupported_media_type")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._service.limits.body_bytes:
            raise too_large(self._service.limits.body_bytes)

    def _check_host(self, host: bytes | None) -> None:
        """Without keys, only requests to this machine's own names: a page of another site could have its name resolve
        to 127.0.0.1 (DNS rebinding)."""
        if self._keys.needs_key or host is None:
            return
        name = host.decode("latin-1").rpartition(":")[0] if _has_port(host) else host.decode("latin-1")
        if not is_loopback(name.strip("[]")):
            raise ApiError(
                403, f"this server has no keys and answers to localhost only, not to {name[:80]!r}", "bad_host"
            )


class _Answer:
    """Notes the status of an answer while it is sent."""

    def __init__(self, send: Send, service: Service) -> None:
        self._send, self._service = send, service
        self.status = ""

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = str(event["status"])
            if self._service.state == "draining":
                event["headers"] = [*event.get("headers", ()), (b"connection", b"close")]
        await self._send(event)

    async def refuse(self, error: ApiError) -> None:
        """Send an error. The connection is closed after it, because the body may not have been read."""
        self._service.metrics.refused.labels(error.code).inc()
        body = json.dumps(error.body()).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers()}
        if self._service.state != "draining":
            headers["Connection"] = "close"
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})


def _has_port(host: bytes) -> bool:
    return b":" in host.rpartition(b"]")[2]


def too_large(limit: int) -> ApiError:
    """The error of a body above the limit."""
    return ApiError(413, f"the body is larger than the limit of {limit:,} bytes", "body_too_large")
