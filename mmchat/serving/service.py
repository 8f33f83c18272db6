"""One served assistant: its state, and how requests reach its engine. For the event loop's thread, unless said."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from threading import Thread
from typing import Any, Literal, Protocol, TypeVar

from PIL import Image

from mmchat.data.fetching import fetch
from mmchat.errors import UserError
from mmchat.serving.bridge import Answer, AnswerGroup, Event, Reply
from mmchat.serving.errors import ApiError, invalid
from mmchat.serving.images import ImageSource, check_sources, read_images
from mmchat.serving.limits import Budget, RateLimit
from mmchat.serving.metrics import EngineState, Metrics
from mmchat.serving.settings import ServeSettings

State = Literal["loading", "ready", "draining", "failed"]
PREPARING_THREADS = 4
"""Read data URIs and headers of images."""
FETCHING_THREADS = 16
"""Fetch images from addresses. They are apart: slow hosts must not delay requests without addresses."""

Result = TypeVar("Result")


class Assistant(Protocol):
    """What a server needs of a model. No method waits for the model. All may be called from any thread."""

    def chat(self, messages: Sequence[dict[str, Any]], images: Sequence[Any], **options: Any) -> Answer:
        """Queue a conversation. Raises UserError for an option that is out of range."""
        ...

    def complete(self, text: str, **options: Any) -> Answer:
        """Queue a text that is continued, control tokens in it as text. Errors as in `chat`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special tokens included."""
        ...

    def state(self) -> EngineState:
        """What the engine does now."""
        ...

    def close(self) -> None:
        """Cancel what runs."""
        ...


class Service:
    """An assistant and the requests that it answers.

    Args:
        settings: What is allowed.
        open_assistant: Loads the model; called in a thread by `start`.
        ready: Called in the event loop when the model has made its first token.
    """

    def __init__(
        self,
        settings: ServeSettings,
        open_assistant: Callable[[], Assistant],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.metrics = Metrics()
        self.created = int(time.time())
        self.state: State = "loading"
        self.failure: BaseException | None = None
        """What ended the loading of the model."""
        self.rate = RateLimit(self.limits.requests_per_minute)
        self.bodies = Budget(self.limits.buffered_bytes, _too_many_bytes)
        self.answers = Budget(self.limits.in_flight, _too_many_answers)
        self.open_requests = 0
        self._open_assistant, self._report_ready = open_assistant, ready
        self._assistant: Assistant | None = None
        self._groups: set[AnswerGroup] = set()
        self._started = 0
        self._readers = ThreadPoolExecutor(self.limits.in_flight, "mmchat-read-answer")
        self._preparers = ThreadPoolExecutor(PREPARING_THREADS, "mmchat-prepare-request")
        self._fetchers = ThreadPoolExecutor(FETCHING_THREADS, "mmchat-fetch")

    # Life

    def start(self, failed: Callable[[], None]) -> None:
        """Load the model in a thread and let it make a first token. Then the state is `ready`.

        Args:
            failed: Called in the event loop if that fails; `failure` has the reason.
        """
        loop = asyncio.get_running_loop()

        def load() -> None:
            try:
                assistant = self._open_assistant()
                make_first_token(assistant)
            except BaseException as error:
                call = partial(self._fail, error, failed)
            else:
                call = partial(self._ready, assistant)
            if not loop.is_closed():
                loop.call_soon_threadsafe(call)

        Thread(target=load, name="mmchat-load", daemon=True).start()

    def _ready(self, assistant: Assistant) -> None:
        self._assistant = assistant
        if self.state == "loading":
            self.state = "ready"
            self._report_ready()

    def _fail(self, error: BaseException, failed: Callable[[], None]) -> None:
        self.state, self.failure = "failed", error
        failed()

    async def drain(self) -> None:
        """Refuse new requests, wait for the running ones as long as `drain_seconds`, then cancel them."""
        self.state = "draining"
        deadline = time.monotonic() + self.limits.drain_seconds
        while self.open_requests and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.cancel_all()

    def cancel_all(self) -> None:
        """Stop all answers. Their callers receive an error."""
        for group in list(self._groups):
            group.cancel()

    def close(self) -> None:
        """Free the model. No request may be open."""
        for pool in (self._readers, self._preparers, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._assistant is not None:
            self._assistant.close()

    # Requests

    @property
    def queued(self) -> int:
        """Answers without a token yet."""
        return self.answers.held - self._started

    @property
    def running(self) -> int:
        """Answers that are being made."""
        return self._started

    def engine_state(self) -> EngineState:
        """What the engine does now."""
        return EngineState() if self._assistant is None else self._assistant.state()

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 if a request names another model."""
        if name != self.settings.name:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r} here; the model is {self.settings.name!r}",
                "model_not_found",
                "model",
            )

    async def read_images(self, sources: Sequence[ImageSource]) -> list[Callable[[], Image.Image]]:
        """Functions that decode the images of a request.

        Raises:
            ApiError: 400.
        """
        check_sources(sources, self.limits, self.settings.allow_image_urls)
        self.metrics.images.inc(len(sources))
        pool = self._fetchers if any(source.is_address for source in sources) else self._preparers
        bounded = partial(fetch, max_bytes=self.limits.body_bytes)
        return await in_thread(pool, partial(read_images, sources, bounded, self.limits)) if sources else []

    async def submit(self, submissions: Sequence[Callable[[Assistant], Answer]], since: float) -> "Work":
        """Submit the choices of one request.

        Args:
            submissions: For each choice a function that submits it. It is called in a thread, because a JSON schema or
                a long text takes a while.
            since: When the request arrived, in seconds of `time.monotonic`.

        Raises:
            ApiError: 400, 429 or 503: an option is out of range, too much is in flight, or the model is not ready.
        """
        if self._assistant is None:
            raise not_ready(self.state)
        self.answers.take(len(submissions))
        pending = self._preparers.submit(submit_all, self._assistant, submissions)
        try:
            # Shielded: if the caller leaves meanwhile, the answers must still be cancelled.
            answers = await asyncio.shield(asyncio.wrap_future(pending))
        except BaseException as error:
            self.answers.give(len(submissions))
            pending.add_done_callback(cancel_answers)
            if isinstance(error, UserError):
                raise invalid(str(error)) from None
            if isinstance(error, Exception):
                self.state = "failed"  # a closed or crashed engine answers nobody any more
            raise
        return Work(self, answers, self._readers, since)

    async def decoded(self, call: Callable[..., Result]) -> Result:
        """The result of a call with the model's `decode`, in a thread."""
        assert self._assistant is not None
        return await in_thread(self._preparers, partial(call, decode=self._assistant.decode))

    # Of `Work`:

    def opened(self, group: AnswerGroup) -> None:
        """A request has answers in flight."""
        self._groups.add(group)

    def closed(self, group: AnswerGroup) -> None:
        """It has none any more."""
        self._groups.discard(group)

    def count_started(self, change: int) -> None:
        """Answers have got their first token, or have ended after one."""
        self._started += change


class Work:
    """The answers to one request, with what is counted about them. Cancel it whatever happens to the request.

    Args:
        service: Where they are counted.
        answers: One for each choice.
        readers: Threads, one for each answer.
        since: When the request arrived.
    """

    def __init__(self, service: Service, answers: Sequence[Answer], readers: Executor, since: float) -> None:
        self._service = service
        self._since = since
        self._started: set[int] = set()
        self._missing = len(answers)
        self._first = True
        self._group = AnswerGroup(answers, readers, self._note_piece, self._note_end)
        service.opened(self._group)

    def cancel(self) -> None:
        """Free the slots."""
        self._group.cancel()

    async def events(self) -> AsyncIterator[Event]:
        """Pieces and replies, as in `AnswerGroup.events`.

        Raises:
            ApiError: 400 for what the caller did, 503 if the server stops.
        """
        try:
            async for index, item in self._group.events():
                if not isinstance(item, str):
                    self._note_reply(item)
                yield index, item
        except UserError as error:
            raise invalid(str(error)) from None

    async def after_first(self) -> AsyncIterator[Event]:
        """Wait for the first event.

        Returns:
            All events, the first included.

        Raises:
            ApiError: As in `events`, if nothing was made before.
        """
        events = self.events()
        first = await anext(events)

        async def all_events() -> AsyncIterator[Event]:
            yield first
            async for event in events:
                yield event

        return all_events()

    # In the event loop, when it happens, whether or not somebody reads it:

    def _note_piece(self, index: int) -> None:
        if self._first:
            self._first = False
            self._service.metrics.first_token.observe(time.monotonic() - self._since)
        if index not in self._started:
            self._started.add(index)
            self._service.count_started(1)

    def _note_end(self, index: int) -> None:
        if index in self._started:
            self._service.count_started(-1)
        self._service.answers.give(1)
        self._missing -= 1
        if not self._missing:
            self._service.closed(self._group)
            self._service.metrics.duration.observe(time.monotonic() - self._since)

    def _note_reply(self, reply: Reply) -> None:
        if reply.reason == "cancelled":
            raise ApiError(503, "the server stopped before the answer was complete", "server_stopping")
        metrics = self._service.metrics
        metrics.prompt_tokens.inc(reply.prompt_tokens)
        metrics.shared_tokens.inc(reply.shared_tokens)
        metrics.new_tokens.inc(len(reply.ids))


def make_first_token(assistant: Assistant) -> None:
    """Let a model make one token about a small image, so that the first caller does not wait for what happens once."""
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    assistant.chat(question, [Image.new("RGB", (64, 64), "gray")], max_new_tokens=1).result()


def submit_all(assistant: Assistant, submissions: Sequence[Callable[[Assistant], Answer]]) -> list[Answer]:
    """Submit all choices, or none."""
    answers: list[Answer] = []
    try:
        for submit in submissions:
            answers.append(submit(assistant))
    except BaseException:
        for answer in answers:
            answer.cancel()
        raise
    return answers


def cancel_answers(pending: Future[list[Answer]]) -> None:
    """Cancel answers that nobody waits for any more."""
    if not pending.cancelled() and pending.exception() is None:
        for answer in pending.result():
            answer.cancel()


async def in_thread(pool: Executor, call: Callable[[], Result]) -> Result:
    """The result of a call in a thread of a pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, call)


async def unless_gone(work: Awaitable[Result], gone: Awaitable[object]) -> Result | None:
    """The result of some work, or None if the caller leaves first; the work is cancelled then."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, watch):
            one.cancel()


def not_ready(state: State) -> ApiError:
    """The error of a server that answers nothing yet, or no more."""
    messages = {
        "loading": "the model is still being loaded; try again later",
        "draining": "the server is stopping; ask another one",
        "failed": "the model has failed; the server must be restarted",
    }
    return ApiError(503, messages.get(state, "the server is not ready"), f"server_{state}", retry_after=1)


def _too_many_answers() -> ApiError:
    return ApiError(429, "too many requests are in progress; try again later", "too_many_in_flight", retry_after=1)


def _too_many_bytes() -> ApiError:
    return ApiError(429, "too many large requests are in progress; try again later", "too_many_bytes", retry_after=1)
