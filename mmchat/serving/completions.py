"""`/v1/completions`: continuations of plain texts, without a conversation's template."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from mmchat.serving.bridge import Answer, Event, Reply
from mmchat.serving.errors import ApiError, invalid
from mmchat.serving.logprobs import completion_logprobs
from mmchat.serving.prompts import count_choices, new_tokens, options_of
from mmchat.serving.responses import DONE, FINISH, Names, check_characters, check_common, sse, usage_of
from mmchat.serving.schemas import Completion, CompletionChoice, CompletionRequest
from mmchat.serving.service import Assistant, Service, Work

DEFAULT_TOKENS = 16
"""OpenAI's default of `max_tokens` here."""


async def start_completion(service: Service, request: CompletionRequest, since: float) -> Work:
    """Check a request and submit its choices: `n` for the first prompt, then for the second, and so on.

    Args:
        service: The served model.
        request: The request.
        since: When it arrived, in seconds of `time.monotonic`.

    Raises:
        ApiError: 4xx for what is wrong with it.
    """
    check_common(service, request)
    texts = prompts_of(request)
    check_characters(sum(map(len, texts)), service, "prompt")
    if request.best_of not in (None, request.n or 1):
        raise invalid("best_of is supported only if it is n: all answers are returned", "best_of")
    if request.logprobs is not None and request.stream:
        raise invalid("logprobs come with whole answers only; leave out stream", "logprobs")
    longest = new_tokens(request, DEFAULT_TOKENS, service.settings)
    count_choices(request, len(texts), service.settings)

    def submit(assistant: Assistant, text: str, choice: int) -> Answer:
        options = options_of(request, choice, longest, service.settings)
        return assistant.complete(text, **options, top_logprobs=request.logprobs)

    each = range(request.n or 1)
    return await service.submit([partial(submit, text=text, choice=choice) for text in texts for choice in each], since)


def prompts_of(request: CompletionRequest) -> list[str]:
    """The texts of a request."""
    return [request.prompt] if isinstance(request.prompt, str) else request.prompt


async def completion(service: Service, events: AsyncIterator[Event], request: CompletionRequest) -> dict[str, Any]:
    """The whole response, when all choices are complete."""
    replies = {index: item async for index, item in events if not isinstance(item, str)}
    names, choices = Names("cmpl", service.settings.name), []
    for index, reply in sorted(replies.items()):
        logprobs = None
        if request.logprobs is not None:
            logprobs = await service.decoded(partial(completion_logprobs, reply))
        finish = FINISH[reply.reason]
        choices.append(CompletionChoice(index=index, text=reply.text, logprobs=logprobs, finish_reason=finish))
    usage = _usage(replies, request)
    response = Completion(id=names.id, created=names.created, model=names.model, choices=choices, usage=usage)
    return response.model_dump()


async def completion_stream(
    service: Service, events: AsyncIterator[Event], request: CompletionRequest
) -> AsyncIterator[bytes]:
    """The response as server-sent events. An error in the middle is an event with `error`, and the last one."""
    names = Names("cmpl", service.settings.name)
    head = {"id": names.id, "object": "text_completion", "created": names.created, "model": names.model}
    with_usage = bool(request.stream_options and request.stream_options.include_usage)
    empty = {"usage": None} if with_usage else {}
    replies: dict[int, Reply] = {}
    try:
        async for index, item in events:
            is_piece = isinstance(item, str)
            choice = {"index": index, "text": item if is_piece else "", "logprobs": None, "finish_reason": None}
            if not isinstance(item, str):
                replies[index] = item
                choice["finish_reason"] = FINISH[item.reason]
            yield sse({**head, "choices": [choice], **empty})
    except ApiError as error:
        yield sse(error.body())
        return
    if with_usage:
        yield sse({**head, "choices": [], "usage": _usage(replies, request).model_dump()})
    yield DONE


def _usage(replies: dict[int, Reply], request: CompletionRequest):
    ordered = [replies[index] for index in sorted(replies)]
    return usage_of(ordered, ordered[:: request.n or 1])
