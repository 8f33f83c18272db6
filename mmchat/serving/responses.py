"""What chat completions and completions share: checks of a request, names, usage and events of a response."""

import json
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from mmchat.serving.bridge import Reply
from mmchat.serving.errors import invalid
from mmchat.serving.schemas import FinishReason, PromptTokensDetails, Sampling, Usage
from mmchat.serving.service import Service

FINISH: dict[str, FinishReason] = {"end": "stop", "stop": "stop", "length": "length", "repetition": "length"}
"""Reason of a reply -> OpenAI's."""
DONE = b"data: [DONE]\n\n"


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


class Names:
    """What all parts of one response share.

    Args:
        prefix: Of the id.
        model: The model's name.
    """

    def __init__(self, prefix: str, model: str) -> None:
        self.id, self.created, self.model = f"{prefix}-{uuid4().hex}", int(time.time()), model


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


def sse(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
