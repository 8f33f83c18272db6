"""Log probabilities of tokens in OpenAI's two shapes."""

from collections.abc import Sequence
from typing import Any

from mmchat.inference.reply import ScoredToken

INCOMPLETE = "\ufffd"
SMALLEST = -9999.0
"""In place of minus infinity, as in OpenAI's API."""


def chat_logprobs(tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """For `/v1/chat/completions` (`schemas.ChatLogprobs`)."""
    content = []
    for token in tokens:
        top = [_entry(text, logprob) for text, logprob in token.top]
        content.append({**_entry(token.text, token.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[ScoredToken], offset: int = 0) -> dict[str, Any]:
    """For `/v1/completions` (`schemas.CompletionLogprobs`).

    Args:
        tokens: The tokens.
        offset: Characters of the continuation before them.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [max(token.logprob, SMALLEST) for token in tokens],
        "top_logprobs": [{text: max(logprob, SMALLEST) for text, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # A part of a character has bytes that the text does not show.
    whole = text and INCOMPLETE not in text
    return {"token": text, "logprob": max(logprob, SMALLEST), "bytes": list(text.encode()) if whole else None}
