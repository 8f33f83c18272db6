"""One served assistant: its state, and how requests reach its engine. For the event loop's thread, unless said."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from threading import Thread
from typing import Literal, TypeVar

from PIL import Image

from mmchat.data.fetching import fetch
from mmchat.errors import UserError
from mmchat.serving.bridge import AnswerGroup
from mmchat.serving.errors import ApiError, invalid
from mmchat.serving.images import ImageSource, check_sources, read_images
from mmchat.serving.limits import Budget, RateLimit
from mmchat.serving.metrics import EngineState, Metrics
from mmchat.serving.model import Answer, Assistant
from mmchat.serving.settings import ServeSettings
from mmchat.serving.work import Work

State = Literal["loading", "ready", "draining", "failed"]
PREPARING_THREADS = 4
"""Read data URIs and headers of images."""
FETCHING_THREADS = 16
"""Fetch images from addresses. They are apart: slow hosts must not delay requests without addresses."""

Result = TypeVar("Result")


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
        limits = self.limits.of_images
        check_sources(sources, limits, self.settings.allow_image_urls)
        self.metrics.images.inc(len(sources))
        pool = self._fetchers if any(source.is_address for source in sources) else self._preparers
        bounded = partial(fetch, max_bytes=limits.file_bytes)
        return await in_thread(pool, partial(read_images, sources, bounded, limits)) if sources else []

    async def submit(self, submissions: Sequence[Callable[[Assistant], Answer]], since: float) -> Work:
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
