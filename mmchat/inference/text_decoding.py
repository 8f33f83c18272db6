"""Tokens become text while they are made: token by token (`TokenDecoder`), and as an answer (`TextDecoder`)."""

from collections.abc import Sequence
from functools import partial

CONTEXT = 8
"""Tokens before a continuation that may change its first characters."""
_INCOMPLETE = "\ufffd"
"""What tokenizers decode a part of a character to."""


class TokenDecoder:
    """Turns tokens into text, one by one. The texts together are the text of all tokens.

    Decoding only the newest tokens would lose what a tokenizer does between tokens (spaces, characters of several
    tokens), and decoding all of them at each step takes quadratic time. As in text-generation-inference
    (`decode_token`), two offsets bound the tokens that are decoded again.

    Args:
        tokenizer: Decodes tokens.
        after: The tokens that the text continues; they are not given out.
    """

    def __init__(self, tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(after[-CONTEXT:])
        self._context = 0
        """From here on, tokens are decoded."""
        self._read = len(self._ids)
        """Up to here, tokens are text already."""

    def add(self, token: int) -> str:
        """The text of a token. Empty for a special one, and for one that does not complete a character."""
        self._ids.append(token)
        text = self._unread()
        if text.endswith(_INCOMPLETE) or not text:
            return ""
        self._context, self._read = self._read, len(self._ids)
        return text

    def finish(self) -> str:
        """The text that is left at the end: characters that are not complete."""
        return self._unread()

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """The text that each of these would have as the next token. Special tokens have one, too."""
        decode = partial(self._tokenizer.decode, skip_special_tokens=False)
        known, before = len(decode(self._ids[self._context : self._read])), self._ids[self._context :]
        return [decode([*before, token])[known:] for token in tokens]

    def _unread(self) -> str:
        """The text of the tokens that are not text yet."""
        decode = self._tokenizer.decode
        known = decode(self._ids[self._context : self._read], skip_special_tokens=True)
        return decode(self._ids[self._context :], skip_special_tokens=True)[len(known) :]


class TextDecoder:
    """Turns tokens into pieces of an answer, one by one.

    A piece ends where a character, a possible stop string and white space that may be the last are complete.

    Args:
        tokenizer: Decodes tokens.
        stop: The text ends before any of these strings.
        after: The tokens that the text continues; they are not given out. White space around a continuation is kept.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = (), after: Sequence[int] | None = None) -> None:
        self._tokens = TokenDecoder(tokenizer, after or ())
        self._strip = after is None
        self._stop = stop
        self._held = ""
        """Text that was not given out."""
        self._begun = self._ended = False

    def add(self, token: int) -> str:
        """The text that is certain after this token, or an empty string."""
        return self._give(text) if (text := self._tokens.add(token)) else ""

    def finish(self) -> str:
        """The text that is left at the end."""
        return self._give(self._tokens.finish(), last=True)

    def _give(self, text: str, last: bool = False) -> str:
        if self._ended:
            return ""
        text = self._held + text
        stops = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if stops:
            text, self._ended, last = text[: min(stops)], True, True
        if self._strip and not self._begun:
            text = text.lstrip()
        kept = 0 if last else _length_of_beginning(text, self._stop)
        given = text[: len(text) - kept]
        given = given.rstrip() if self._strip else given
        self._held = text[len(given) :]
        self._begun = self._begun or bool(given)
        return given


def _length_of_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of a text that a stop string begins with."""
    lengths = (n for one in stop for n in range(min(len(one) - 1, len(text)), 0, -1) if text.endswith(one[:n]))
    return max(lengths, default=0)
