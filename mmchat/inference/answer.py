"""`Answer`: the text of one request while the engine makes it."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

from mmchat.inference.engine import Handle
from mmchat.inference.repetition import RepetitionGuard
from mmchat.inference.reply import Piece, Reason, Reply
from mmchat.inference.text_decoding import TextDecoder
from mmchat.inference.token_scores import TokenScores


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
        with closing(self.pieces()) as pieces:
            for piece in pieces:
                if piece.text:
                    yield piece.text

    def pieces(self) -> Generator[Piece, None, None]:
        """Pieces of the text as they are made, with their tokens. Raises what `result` raises."""
        try:
            yield from self._pieces(self.handle)
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
        handle, result = self.handle, self.handle.result(timeout)
        ids = result.ids
        reason: Reason = result.reason
        loop = self._guard and self._guard.loop
        if loop and reason == "stop":
            ids, reason = ids[: loop.begin + loop.period], "repetition"
        pieces = list(self._pieces(ids))
        text = "".join(piece.text for piece in pieces)
        tokens = tuple(token for piece in pieces for token in piece.tokens)
        return Reply(text, reason, result.ids, handle.prompt_tokens, handle.shared_tokens, result.logprobs, tokens)

    def _pieces(self, ids: Iterable[int]) -> Iterator[Piece]:
        """The pieces of these tokens, which are the first of the handle's."""
        text = TextDecoder(self._tokenizer, self._stop, self._after)
        scored = self.handle.request.top_logprobs is not None
        scores = TokenScores(self._tokenizer, self._after or ())
        for number, token in enumerate(ids):
            if scored:
                scores.add(token, self.handle.logprobs[number])
            if piece := text.add(token):
                yield Piece(piece, scores.take())
        ended = scored and self.handle.result().reason == "end"
        last = Piece(text.finish(), scores.finish(ended))
        if last.text or last.tokens:
            yield last
