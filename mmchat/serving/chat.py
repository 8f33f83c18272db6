"""`/v1/chat/completions`: from a request to the model's work, and from its events to OpenAI's JSON."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mmchat.inference.reply import Piece, Reply
from mmchat.serving.errors import invalid
from mmchat.serving.images import Once
from mmchat.serving.logprobs import chat_logprobs
from mmchat.serving.model import Answer, Assistant
from mmchat.serving.prompts import (
    check_request,
    count_characters,
    count_choices,
    new_tokens,
    options_of,
    to_messages,
)
from mmchat.serving.responses import Response
from mmchat.serving.schemas import ChatCompletion, ChatRequest, JsonObjectFormat, JsonSchemaFormat
from mmchat.serving.service import Service
from mmchat.serving.work import Work


async def start_chat(service: Service, request: ChatRequest, since: float) -> Work:
    """Check a request, read its images and submit its choices.

    Args:
        service: The served model.
        request: The request.
        since: When it arrived, in seconds of `time.monotonic`.

    Raises:
        ApiError: 4xx for what is wrong with it.
    """
    check_request(service, request, count_characters(request.messages), "messages")
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
        ApiError: 400: they are asked for without `logprobs`.
    """
    if not request.logprobs:
        if request.top_logprobs:
            raise invalid("top_logprobs need logprobs: true", "top_logprobs")
        return None
    return request.top_logprobs or 0


class ChatResponse(Response):
    """The response to a conversation. Arguments as in `Response`."""

    body = ChatCompletion
    event = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, request: ChatRequest, model: str) -> None:
        super().__init__(request, model)
        self._with_logprobs = bool(request.logprobs)

    def choice(self, reply: Reply) -> dict[str, Any]:
        logprobs = chat_logprobs(reply.tokens) if self._with_logprobs else None
        return {"message": {"role": "assistant", "content": reply.text}, "logprobs": logprobs}

    def begin(self) -> list[dict[str, Any]]:
        return [{"delta": {"role": "assistant", "content": ""}} for _ in range(self._each)]

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        logprobs = chat_logprobs(piece.tokens) if piece.tokens else None
        return {"delta": {"content": piece.text} if piece.text else {}, "logprobs": logprobs}
