"""From the answers of the engine's threads to asyncio. A reader that stops reading stops nobody else."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from mmchat.inference.reply import Piece, Reply
from mmchat.serving.model import Answer

Event = tuple[int, Piece | Reply]
"""Index of the choice, and a piece of its answer or, once, its reply."""


class AnswerGroup:
    """The answers to one request, read by one coroutine.

    A thread per answer waits for its pieces and hands them to the event loop. Pieces are kept until they are read, at
    most as many as the answer has tokens, so neither the engine nor the thread waits for a slow reader.

    Args:
        answers: One for each choice.
        threads: Must have a free thread for each answer.
        made: Called in the event loop with the index of an answer when it has a piece more, read or not.
        ended: Called in the event loop with the index of an answer when no more comes, once for each.
    """

    def __init__(
        self,
        answers: Sequence[Answer],
        threads: Executor,
        made: Callable[[int], None],
        ended: Callable[[int], None],
    ) -> None:
        self._answers = list(answers)
        self._count = self._missing = len(answers)
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Piece | Reply | BaseException]] = asyncio.Queue()
        self._made, self._ended = made, ended
        for index, answer in enumerate(answers):
            threads.submit(self._read, index, answer)

    def cancel(self) -> None:
        """Stop all answers that are not complete, which frees their slots."""
        for answer in self._answers:
            answer.cancel()

    async def events(self) -> AsyncIterator[Event]:
        """Pieces of all choices as they are made. Each choice ends with its reply; then the iterator ends.

        Raises:
            Exception: What made an answer fail.
        """
        unread = self._count
        while unread:
            index, item = await self._events.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Reply):
                unread -= 1
            yield index, item

    # In a thread:

    def _read(self, index: int, answer: Answer) -> None:
        try:
            for piece in answer.pieces():
                self._post(self._put_piece, index, piece)
            last: Reply | BaseException = answer.result()
        except BaseException as error:
            last = error
        self._post(self._put_last, index, last)

    def _post(self, call: Callable[[int, Any], None], index: int, item: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, index, item)

    # In the event loop:

    def _put_piece(self, index: int, piece: Piece) -> None:
        self._events.put_nowait((index, piece))
        self._made(index)

    def _put_last(self, index: int, last: Reply | BaseException) -> None:
        self._events.put_nowait((index, last))
        self._ended(index)
        self._missing -= 1
        if not self._missing:
            # Answers hold the images of their request, and the callers of `made` and `ended` hold this group.
            self._answers.clear()
            del self._made, self._ended
