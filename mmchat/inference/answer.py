"""`Answer`: the text of one request while the engine makes it, and `Reply`, the text when it is complete."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mmchat.inference.engine import Handle, TokenLogprobs
from mmchat.inference.repetition import RepetitionGuard

Reason = Literal["end", "length", "stop", "repetition", "cancelled"]
"""The model ended the text, a limit was reached, a stop string came, the text looped, or it was cancelled."""

CONTEXT = 8
"""Tokens before a continuation that may change its first characters."""
_INCOMPLETE = "\ufffd"
"""What tokenizers decode a part of a character to."""


@dataclass(frozen=True)
class Reply:
    """A complete answer."""

    text: str
    """Without white space around it, special tokens and the stop string. One copy of a looping piece is kept."""
    reason: Reason
    ids: tuple[int, ...]
    """All tokens that were made."""
    prompt_tokens: int
    """Tokens of the prompt, with those of its images."""
    shared_tokens: int
    """Of these, tokens that were taken from the cache of another request."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """For each token, if asked for."""


class Answer:
    """The answer to one request. Iterate over it for pieces of text, or wait for `result`.

    The pieces together are the text of `result`, except for a text that loops, of which `result` keeps one copy.
    Closing the iterator cancels the request. All methods may be called from any thread.

    Args:
        handle: The request.
        tokenizer: Decodes its tokens.
        stop: The strings that end the text.
        guard: The guard that ends a looping text.
        after: The tokens that the text continues. White space around a continuation is kept.
    """

    def __init__(
        self,
        handle: Handle,
        tokenizer,
        stop: Sequence[str] = (),
        guard: RepetitionGuard | None = None,
        after: Sequence[int] | None = None,
    ) -> None:
        self.handle = handle
        self._after = after
        self._tokenizer = tokenizer
        self._stop = stop
        self._guard = guard

    @property
    def done(self) -> bool:
        """Whether the answer is complete, failed or cancelled."""
        return self.handle.done

    def cancel(self) -> None:
        """Stop generating."""
        self.handle.cancel()

    def wait(self) -> None:
        """Wait until it is complete, failed or cancelled."""
        self.handle.wait()

    def __iter__(self) -> Iterator[str]:
        """Pieces of the text as they are made. Raises what `result` raises."""
        decoder = TextDecoder(self._tokenizer, self._stop, self._after)
        try:
            for token in self.handle:
                if piece := decoder.add(token):
                    yield piece
            if piece := decoder.finish():
                yield piece
        finally:  # also when the caller closes the iterator early: a slot must not stay busy
            self.cancel()

    def result(self, timeout: float | None = None) -> Reply:
        """Wait for the complete answer.

        Args:
            timeout: Seconds to wait; None: until it is there.

        Raises:
            TimeoutError: It is not there in time.
            UserError: An image cannot be read, or the prompt does not fit.
        """
        result = self.handle.result(timeout)
        ids = result.ids
        reason: Reason = result.reason
        loop = self._guard and self._guard.loop
        if loop and reason == "stop":
            ids, reason = ids[: loop.begin + loop.period], "repetition"
        decoder = TextDecoder(self._tokenizer, self._stop, self._after)
        text = "".join(decoder.add(token) for token in ids) + decoder.finish()
        handle = self.handle
        return Reply(text, reason, result.ids, handle.prompt_tokens, handle.shared_tokens, result.logprobs)


class TextDecoder:
    """Turns tokens into pieces of text, one by one.

    A piece ends where a character, a possible stop string and white space that may be the last are complete.

    Decoding only the newest tokens would lose what a tokenizer does between tokens (spaces, characters of several
    tokens), and decoding all of them at each step takes quadratic time. As in text-generation-inference
    (`decode_token`), two offsets bound the tokens that are decoded again.

    Args:
        tokenizer: Decodes tokens.
        stop: The text ends before any of these strings.
        after: The tokens that the text continues; they are not given out. White space around a continuation is kept.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = (), after: Sequence[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._strip = after is None
        self._stop = stop
        self._ids: list[int] = [] if after is None else list(after[-CONTEXT:])
        self._context = 0
        """From here on, tokens are decoded."""
        self._read = len(self._ids)
        """Up to here, tokens are text already."""
        self._held = ""
        """Text that was not given out."""
        self._begun = self._ended = False

    def add(self, token: int) -> str:
        """The text that is certain after this token, or an empty string."""
        self._ids.append(token)
        known, text = self._decoded()
        if text.endswith(_INCOMPLETE) or len(text) <= len(known):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._give(text[len(known) :])

    def finish(self) -> str:
        """The text that is left at the end."""
        known, text = self._decoded()
        return self._give(text[len(known) :], last=True)

    def _decoded(self) -> tuple[str, str]:
        """The newest tokens as text: without those that are not text yet, and with them."""
        decode = self._tokenizer.decode
        known = decode(self._ids[self._context : self._read], skip_special_tokens=True)
        return known, decode(self._ids[self._context :], skip_special_tokens=True)

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
