"""`/v1/chat/completions`: from a request to the model's work, and from its events to OpenAI's JSON."""

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from threading import Lock
from typing import Any

from PIL import Image

from mmchat.serving.bridge import Answer, Event, Reply
from mmchat.serving.errors import ApiError, invalid
from mmchat.serving.logprobs import chat_logprobs
from mmchat.serving.prompts import count_characters, count_choices, new_tokens, options_of, to_messages
from mmchat.serving.responses import DONE, FINISH, Names, check_characters, check_common, sse, usage_of
from mmchat.serving.schemas import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
)
from mmchat.serving.service import Assistant, Service, Work


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
    more = {"json_schema": json_schema_of(request), "top_logprobs": top_logprobs_of(request)}
    images = await service.read_images(sources)
    if choices > 1:
        images = [Once(image) for image in images]

    def submit(assistant: Assistant, choice: int) -> Answer:
        return assistant.chat(messages, images, **options_of(request, choice, longest, service.settings), **more)

    return await service.submit([partial(submit, choice=choice) for choice in range(choices)], since)


def json_schema_of(request: ChatRequest) -> Mapping[str, Any] | None:
    """The schema that the answer must fit; None for a text."""
    match request.response_format:
        case JsonSchemaFormat(json_schema=asked):
            return asked.schema_
        case JsonObjectFormat():
            return {"type": "object"}
    return None


def top_logprobs_of(request: ChatRequest) -> int | None:
    """How many of the most probable tokens get a log probability; None: no log probabilities at all.

    Raises:
        ApiError: 400: with a stream, or without `logprobs`.
    """
    if not request.logprobs:
        if request.top_logprobs:
            raise invalid("top_logprobs need logprobs: true", "top_logprobs")
        return None
    if request.stream:
        raise invalid("logprobs come with whole answers only; leave out stream", "logprobs")
    return request.top_logprobs or 0


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


async def chat_completion(service: Service, events: AsyncIterator[Event], with_logprobs: bool) -> dict[str, Any]:
    """The whole response, when all choices are complete.

    Args:
        service: The served model.
        events: Of the work.
        with_logprobs: Whether the tokens' log probabilities are asked for.
    """
    replies = {index: item async for index, item in events if not isinstance(item, str)}
    names, choices = Names("chatcmpl", service.settings.name), []
    for index, reply in sorted(replies.items()):
        logprobs = await service.decoded(partial(chat_logprobs, reply)) if with_logprobs else None
        message = AnswerMessage(content=reply.text)
        choices.append(ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=FINISH[reply.reason]))
    usage = usage_of([replies[index] for index in sorted(replies)])
    response = ChatCompletion(id=names.id, created=names.created, model=names.model, choices=choices, usage=usage)
    return response.model_dump()


async def chat_stream(service: Service, events: AsyncIterator[Event], request: ChatRequest) -> AsyncIterator[bytes]:
    """The response as server-sent events: the role, pieces of text and the end of each choice, then `[DONE]`.

    An error in the middle is an event with `error`, and the last one.
    """
    names = Names("chatcmpl", service.settings.name)
    with_usage = bool(request.stream_options and request.stream_options.include_usage)
    chunk = partial(_chunk, names, with_usage)
    replies: list[Reply] = []
    try:
        for index in range(request.n or 1):
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
