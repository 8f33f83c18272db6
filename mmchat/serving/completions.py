"""`/v1/completions`: continuations of plain texts, without a conversation's template."""

from collections import defaultdict
from functools import partial
from typing import Any

from mmchat.inference.reply import Piece, Reply
from mmchat.serving.errors import invalid
from mmchat.serving.logprobs import completion_logprobs
from mmchat.serving.model import Answer, Assistant
from mmchat.serving.prompts import check_request, count_choices, new_tokens, options_of
from mmchat.serving.responses import Response
from mmchat.serving.schemas import Completion, CompletionRequest
from mmchat.serving.service import Service
from mmchat.serving.work import Work

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
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    check_request(service, request, sum(map(len, texts)), "prompt")
    if request.best_of not in (None, request.n or 1):
        raise invalid("best_of is supported only if it is n: all answers are returned", "best_of")
    longest = new_tokens(request, DEFAULT_TOKENS, service.settings)
    count_choices(request, len(texts), service.settings)

    def submit(assistant: Assistant, text: str, choice: int) -> Answer:
        options = options_of(request, choice, longest, service.settings)
        return assistant.complete(text, **options, top_logprobs=request.logprobs)

    each = range(request.n or 1)
    return await service.submit([partial(submit, text=text, choice=choice) for text in texts for choice in each], since)


class CompletionResponse(Response):
    """The response to texts that are continued. Arguments as in `Response`."""

    body = Completion
    event = "text_completion"
    prefix = "cmpl"

    def __init__(self, request: CompletionRequest, model: str) -> None:
        super().__init__(request, model)
        self._with_logprobs = request.logprobs is not None
        self._offsets: dict[int, int] = defaultdict(int)
        """Characters of the tokens of each choice that have left."""

    def choice(self, reply: Reply) -> dict[str, Any]:
        logprobs = completion_logprobs(reply.tokens) if self._with_logprobs else None
        return {"text": reply.text, "logprobs": logprobs}

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        logprobs = completion_logprobs(piece.tokens, self._offsets[index]) if piece.tokens else None
        self._offsets[index] += sum(len(token.text) for token in piece.tokens)
        return {"text": piece.text, "logprobs": logprobs}
