"""Requests become what a `Generator` takes: messages of the chat dialect, images, and sampling options.

Text of a request stays text: `<image>` and control tokens in it are encoded as typed (`conversation.safe_tokenizer`).
"""

from collections.abc import Sequence
from typing import Any

from mmchat.serving.errors import invalid
from mmchat.serving.images import ImageSource
from mmchat.serving.schemas import ChatRequest, ImagePart, Message, Sampling
from mmchat.serving.service import Service
from mmchat.serving.settings import ServeSettings


def to_messages(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[ImageSource]]:
    """Messages of the chat dialect and the sources of their images, in order.

    Raises:
        ApiError: 400: an image outside a user's message.
    """
    written: list[dict[str, Any]] = []
    sources: list[ImageSource] = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str):
            written.append({"role": role, "content": message.content})
            continue
        parts: list[dict[str, str]] = []
        for place, part in enumerate(message.content):
            if isinstance(part, ImagePart):
                param = f"messages[{number}].content[{place}].image_url.url"
                if role != "user":
                    raise invalid(f"a message of the {role} cannot hold an image; move it to a user's message", param)
                sources.append(ImageSource(part.image_url.url, param))
                parts.append({"type": "image"})
            else:
                parts.append({"type": "text", "text": part.text})
        written.append({"role": role, "content": parts})
    return written, sources


def check_request(service: Service, request: Sampling, characters: int, param: str) -> None:
    """What every kind of request is checked for first.

    Args:
        service: The served model.
        request: The request.
        characters: Of all its texts.
        param: The parameter that holds them.

    Raises:
        ApiError: 404 for another model, 400 for what else is wrong.
    """
    service.check_model(request.model)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options need stream: true", "stream_options")
    most = service.limits.text_characters
    if characters > most:
        message = f"the request has {characters:,} characters of text, more than the limit of {most:,}"
        raise invalid(message, param, "text_too_long")


def count_characters(messages: Sequence[Message]) -> int:
    """Characters of all texts."""
    return sum(
        len(message.content)
        if isinstance(message.content, str)
        else sum(len(part.text) for part in message.content if not isinstance(part, ImagePart))
        for message in messages
    )


def new_tokens(request: Sampling, default: int, settings: ServeSettings) -> int:
    """The longest answer that a request allows, in tokens.

    Raises:
        ApiError: 400: more than the server's limit, or two names with different values.
    """
    asked, name = request.max_tokens, "max_tokens"
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        if asked not in (None, request.max_completion_tokens):
            raise invalid(
                f"max_tokens is {asked} but max_completion_tokens, its newer name, is {request.max_completion_tokens}; "
                "give one of them",
                "max_tokens",
            )
        asked, name = request.max_completion_tokens, "max_completion_tokens"
    if asked is None:
        return min(default, settings.limits.new_tokens)
    if asked > settings.limits.new_tokens:
        raise invalid(f"{name} is {asked}, more than the server's limit of {settings.limits.new_tokens}", name)
    return asked


def options_of(request: Sampling, choice: int, longest: int, settings: ServeSettings) -> dict[str, Any]:
    """Keywords of `Generator.submit` for one choice.

    Args:
        request: The request.
        choice: Index of the choice. Each has a seed of its own, which follows from the request's.
        longest: As `new_tokens` returns it.
        settings: Has the default temperature.
    """
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or ()
    return {
        "max_new_tokens": longest,
        "temperature": settings.temperature if request.temperature is None else request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "repetition_penalty": request.repetition_penalty,
        # OpenAI's seeds may be negative, the engine's are from 0 to 2**63 - 1.
        "seed": None if request.seed is None else (request.seed + choice) % 2**63,
        "stop": tuple(stop),
    }


def count_choices(request: Sampling, prompts: int, settings: ServeSettings) -> int:
    """Number of answers to a request of one or more prompts.

    Raises:
        ApiError: 400: more than the server's limit.
    """
    choices = (request.n or 1) * prompts
    if choices > settings.limits.choices:
        raise invalid(
            f"{choices} answers are asked for, more than the server's limit of {settings.limits.choices}", "n"
        )
    return choices
