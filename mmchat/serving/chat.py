"""`/v1/chat/completions`: from a request to the model's work, and from its events to OpenAI's JSON."""

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any
from uuid import uuid4

from PIL import Image

from mmchat.serving.bridge import Answer, Event, Reply
from mmchat.serving.errors import ApiError, invalid
from mmchat.serving.prompts import count_characters, count_choices, new_tokens, options_of, to_messages
from mmchat.serving.schemas import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatRequest,
    FinishReason,
    PromptTokensDetails,
    Sampling,
    Usage,
)
from mmchat.serving.service import Assistant, Service, Work

FINISH: dict[str, FinishReason] = {"end": "stop", "stop": "stop", "length": "length", "repetition": "length"}
"""Reason of a reply -> OpenAI's."""
DONE = b"data: [DONE]\n\n"


async def start_chat(service: Service, request: ChatRequest, since: float) -> Work:
    """Check a request, read its images and submit its choices.

    Args:
        service: The served model.
        request: The request.
        since: When it arrived, in seconds of `time.monotonic`.

    Raises:
        ApiError: 4xx for what is wrong with it.
    """
    check_common(service, request)
    check_characters(count_characters(request.messages), service, "messages")
    messages, sources = to_messages(request.messages)
    longest = new_tokens(request, service.limits.new_tokens, service.settings)
    choices = count_choices(request, 1, service.settings)
    images = await service.read_images(sources)
    if choices > 1:
        images = [Once(image) for image in images]

    def submit(assistant: Assistant, choice: int) -> Answer:
        return assistant.chat(messages, images, **options_of(request, choice, longest, service.settings))

    return service.submit([partial(submit, choice=choice) for choice in range(choices)], since)


def check_common(service: Service, request: Sampling) -> None:
    """What every kind of request is checked for first. Raises ApiError."""
    service.check_model(request.model)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options need stream: true", "stream_options")


def check_characters(count: int, service: Service, param: str) -> None:
    """Raises ApiError if a request has more text than allowed."""
    if count > service.limits.text_characters:
        raise invalid(
            f"the request has {count:,} characters of text, more than the limit of {service.limits.text_characters:,}",
            param,
            "text_too_long",
        )


class Once:
    """An image that is decoded once for several choices, when the first of them needs it.

    Args:
        decode: Decodes it.
    """

    def __init__(self, decode: Callable[[], Image.Image]) -> None:
        self._decode = decode
        self._lock = Lock()
        self._image: Image.Image | None = None

    def __call__(self) -> Image.Image:
        with self._lock:
            if self._image is None:
                self._image = self._decode()
            return self._image


class Names:
    """What all parts of one response share.

    Args:
        prefix: Of the id.
        model: The model's name.
    """

    def __init__(self, prefix: str, model: str) -> None:
        self.id, self.created, self.model = f"{prefix}-{uuid4().hex}", int(time.time()), model


async def chat_completion(events: AsyncIterator[Event], model: str) -> dict[str, Any]:
    """The whole response, when all choices are complete."""
    replies = [
        reply for _, reply in sorted([(i, item) async for i, item in events if not isinstance(item, str)], key=_index)
    ]
    names = Names("chatcmpl", model)
    choices = [
        ChatChoice(index=index, message=AnswerMessage(content=reply.text), finish_reason=FINISH[reply.reason])
        for index, reply in enumerate(replies)
    ]
    response = ChatCompletion(id=names.id, created=names.created, model=model, choices=choices, usage=usage_of(replies))
    return response.model_dump()


def _index(pair: tuple[int, Reply]) -> int:
    return pair[0]


def usage_of(replies: Sequence[Reply], prompts: Sequence[Reply] | None = None) -> Usage:
    """Tokens of a response. The prompt counts once, however many choices it has (as OpenAI counts).

    Args:
        replies: Of all choices.
        prompts: One reply for each prompt; None: all choices have the same.
    """
    prompts = replies[:1] if prompts is None else prompts
    prompt = sum(reply.prompt_tokens for reply in prompts)
    new = sum(len(reply.ids) for reply in replies)
    shared = sum(reply.shared_tokens for reply in prompts)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=new,
        total_tokens=prompt + new,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=shared),
    )


async def chat_stream(events: AsyncIterator[Event], choices: int, model: str, with_usage: bool) -> AsyncIterator[bytes]:
    """The response as server-sent events: the role, pieces of text and the end of each choice, then `[DONE]`.

    An error in the middle is an event with `error`, and the last one.

    Args:
        events: Of the work.
        choices: Their number.
        model: The model's name.
        with_usage: Whether a last event has the usage of all choices.
    """
    names = Names("chatcmpl", model)
    chunk = partial(_chunk, names, with_usage)
    replies: list[Reply] = []
    try:
        for index in range(choices):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for index, item in events:
            if isinstance(item, str):
                yield chunk(index, {"content": item})
            else:
                replies.append(item)
                yield chunk(index, {}, FINISH[item.reason])
    except ApiError as error:
        yield sse(error.body())
        return
    if with_usage:
        yield sse({**_head(names), "choices": [], "usage": usage_of(replies).model_dump()})
    yield DONE


def _head(names: Names) -> dict[str, Any]:
    return {"id": names.id, "object": "chat.completion.chunk", "created": names.created, "model": names.model}


def _chunk(names: Names, with_usage: bool, index: int, delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return sse({**_head(names), "choices": [choice], **({"usage": None} if with_usage else {})})


def sse(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
