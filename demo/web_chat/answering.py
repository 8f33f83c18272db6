"""One answer, streamed into its turn."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmchat.errors import UserError
from mmchat.inference.repetition import REPEATS
from web_chat.conversation import Conversation, Status, Turn
from web_chat.visitors import Visitor

PAUSE = 0.08
"""Seconds between two updates of the browser. Each sends what is new to one visitor."""


@dataclass(frozen=True)
class Settings:
    """How answers are made. None leaves the choice to the model."""

    temperature: float = 0.0
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_new_tokens: int = 128

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of `Generator.submit`."""
        return {name: value for name, value in vars(self).items() if value is not None}


def answer(generator: Any, conversation: Conversation, settings: Settings, visitor: Visitor) -> Iterator[Turn]:
    """Answer the last question of a conversation.

    Closing the iterator stops the model.

    Args:
        generator: A `Generator`.
        conversation: Its last turn is changed.
        settings: How.
        visitor: Who may stop it; holds the handle of the answer meanwhile.

    Yields:
        The turn, at most every `PAUSE` seconds, and once it is done.

    Raises:
        UserError: The model cannot answer this.
    """
    turn = conversation.turns[-1]
    messages, images = conversation.messages()
    started = shown = time.monotonic()
    first = None
    handle = generator.submit(messages, [image.data for image in images], repeats=REPEATS, **settings.options)
    visitor.running.add(handle)
    try:
        for piece in handle:
            if visitor.stopped:
                break
            turn.answer += piece
            now = time.monotonic()
            first = first or now
            if now - shown >= PAUSE:
                shown = now
                yield turn
        handle.cancel()  # changes nothing once it is complete
        reply, ended = handle.result(), time.monotonic()
    finally:
        handle.cancel()
        visitor.running.discard(handle)
    reason = "cancelled" if visitor.stopped else reply.reason
    if not reply.text and reason == "end":
        raise UserError("the model gave an empty answer")
    turn.answer, turn.state = turn.answer.strip() if visitor.stopped else reply.text, "done"
    turn.status = Status(
        reason=reason,
        new_tokens=len(reply.ids),
        limit=settings.max_new_tokens,
        seconds=ended - started,
        first_seconds=(first or ended) - started,
        prompt_tokens=reply.prompt_tokens,
        slots=sum(layout.slots for layout in generator.processor.layouts([image.size for image in images])),
        shared_tokens=reply.shared_tokens,
        context=generator.engine.limits.longest,
    )
    yield turn
