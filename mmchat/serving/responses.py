"""The response to a request: events of its answers become OpenAI's JSON, whole or as a stream.

`chat` and `completions` derive from `Response` and say what a choice looks like.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar
from uuid import uuid4

from pydantic import BaseModel

from mmchat.inference.reply import Piece, Reply
from mmchat.serving.bridge import Event
from mmchat.serving.errors import ApiError
from mmchat.serving.schemas import FinishReason, PromptTokensDetails, Sampling, Usage

FINISH: dict[str, FinishReason] = {"end": "stop", "stop": "stop", "length": "length", "repetition": "length"}
"""Reason of a reply -> OpenAI's."""
DONE = b"data: [DONE]\n\n"


class Response:
    """The response to one request.

    Args:
        request: The request.
        model: What the model is called.
    """

    body: ClassVar[type[BaseModel]]
    """Of a whole response."""
    event: ClassVar[str]
    """`object` of an event."""
    prefix: ClassVar[str]
    """Of its id."""

    def __init__(self, request: Sampling, model: str) -> None:
        self.streams = bool(request.stream)
        self._each = request.n or 1
        self._with_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._names = {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": model}

    def choice(self, reply: Reply) -> dict[str, Any]:
        """A complete choice, without what all kinds of responses have."""
        raise NotImplementedError

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of a choice, likewise."""
        raise NotImplementedError

    def begin(self) -> list[dict[str, Any]]:
        """What the choices of a stream begin with, if anything."""
        return []

    async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
        """The response when all choices are complete."""
        replies = _ordered({index: item async for index, item in events if isinstance(item, Reply)})
        # In a thread: thousands of tokens with log probabilities would stop all other requests.
        return await asyncio.to_thread(self._written, replies)

    def _written(self, replies: Sequence[Reply]) -> dict[str, Any]:
        choices = [
            {"index": index, **self.choice(reply), "finish_reason": FINISH[reply.reason]}
            for index, reply in enumerate(replies)
        ]
        return self.body(**self._names, choices=choices, usage=usage_of(replies, self._each)).model_dump()

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """The response as server-sent events: pieces and the end of each choice, then `[DONE]`.

        An error in the middle is an event with `error`, and the last one.
        """
        replies: dict[int, Reply] = {}
        try:
            for index, part in enumerate(self.begin()):
                yield self._event(index, part)
            async for index, item in events:
                if isinstance(item, Reply):
                    replies[index] = item
                    yield self._event(index, self.part(index, Piece("")), FINISH[item.reason])
                else:
                    yield self._event(index, self.part(index, item))
        except ApiError as error:
            yield sse(error.body())
            return
        if self._with_usage:
            usage = usage_of(_ordered(replies), self._each).model_dump()
            yield sse({**self._names, "object": self.event, "choices": [], "usage": usage})
        yield DONE

    def _event(self, index: int, part: dict[str, Any], finish: FinishReason | None = None) -> bytes:
        choice = {"index": index, "logprobs": None, **part, "finish_reason": finish}
        usage = {"usage": None} if self._with_usage else {}
        return sse({**self._names, "object": self.event, "choices": [choice], **usage})


def _ordered(replies: dict[int, Reply]) -> list[Reply]:
    return [replies[index] for index in sorted(replies)]


def usage_of(replies: Sequence[Reply], each: int) -> Usage:
    """Tokens of a response. A prompt counts once, however many choices it has (as OpenAI counts).

    Args:
        replies: Of all choices.
        each: Choices of one prompt.
    """
    prompts = replies[::each]
    prompt = sum(reply.prompt_tokens for reply in prompts)
    new = sum(len(reply.ids) for reply in replies)
    shared = sum(reply.shared_tokens for reply in prompts)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=new,
        total_tokens=prompt + new,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=shared),
    )


def sse(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
