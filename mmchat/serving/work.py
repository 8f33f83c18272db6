"""The answers to one request, from their submission to their end, and what is counted about them."""

import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from mmchat.errors import UserError
from mmchat.inference.reply import Reply
from mmchat.serving.bridge import AnswerGroup, Event
from mmchat.serving.errors import ApiError, invalid
from mmchat.serving.model import Answer

if TYPE_CHECKING:
    from mmchat.serving.service import Service


class Work:
    """The answers to one request, with what is counted about them. Cancel it whatever happens to the request.

    Args:
        service: Where they are counted.
        answers: One for each choice.
        readers: Threads, one for each answer.
        since: When the request arrived.
    """

    def __init__(self, service: "Service", answers: Sequence[Answer], readers: Executor, since: float) -> None:
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
                if isinstance(item, Reply):
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
