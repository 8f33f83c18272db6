"""Log probabilities of tokens in OpenAI's two shapes."""

from collections.abc import Callable, Sequence

from mmchat.serving.bridge import Reply
from mmchat.serving.schemas import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens included."""
CONTEXT = 4
"""Tokens before a token that may change its text, such as the space at its beginning."""
INCOMPLETE = "\ufffd"


def chat_logprobs(reply: Reply, decode: Decode) -> ChatLogprobs:
    """For `/v1/chat/completions`. The token that ended the text is left out."""
    content = []
    for place, (ids, of_token) in enumerate(zip(*_counted(reply), strict=True)):
        text = _text_in(reply.ids, place, decode)
        top = [_entry(text(other), logprob) for other, logprob in of_token.top]
        entry = _entry(text(ids), of_token.token)
        content.append(TokenLogprob(**entry.model_dump(), top_logprobs=top))
    return ChatLogprobs(content=content)


def completion_logprobs(reply: Reply, decode: Decode) -> CompletionLogprobs:
    """For `/v1/completions`. Offsets are characters from the beginning of the continuation."""
    tokens, top, offsets, offset = [], [], [], 0
    ids, logprobs = _counted(reply)
    for place, (token, of_token) in enumerate(zip(ids, logprobs, strict=True)):
        text = _text_in(reply.ids, place, decode)
        tokens.append(text(token))
        top.append({text(other): logprob for other, logprob in of_token.top})
        offsets.append(offset)
        offset += len(tokens[-1])
    return CompletionLogprobs(
        tokens=tokens, token_logprobs=[one.token for one in logprobs], top_logprobs=top, text_offset=offsets
    )


def _counted(reply: Reply):
    """Tokens of the text and their log probabilities."""
    count = len(reply.ids) - (reply.reason == "end")
    return reply.ids[:count], reply.logprobs[:count]


def _text_in(ids: Sequence[int], place: int, decode: Decode) -> Callable[[int], str]:
    """The text of any token at a place of an answer."""
    before = list(ids[max(0, place - CONTEXT) : place])
    known = len(decode(before))
    return lambda token: decode([*before, token])[known:]


def _entry(text: str, logprob: float) -> TopLogprob:
    whole = INCOMPLETE not in text  # a part of a character has bytes that the text does not show
    return TopLogprob(token=text, logprob=max(logprob, -9999.0), bytes=list(text.encode()) if whole else None)
