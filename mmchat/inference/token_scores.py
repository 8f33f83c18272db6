"""Log probabilities of an answer's tokens, with the tokens as text."""

from collections.abc import Sequence
from dataclasses import replace

from mmchat.inference.engine import TokenLogprobs
from mmchat.inference.reply import ScoredToken
from mmchat.inference.text_decoding import TokenDecoder


class TokenScores:
    """Collects the tokens of one answer.

    Args:
        tokenizer: Decodes tokens.
        after: The tokens that the answer continues.
    """

    def __init__(self, tokenizer, after: Sequence[int]) -> None:
        self._decoder = TokenDecoder(tokenizer, after)
        self._waiting: list[ScoredToken] = []

    def add(self, token: int, logprobs: TokenLogprobs) -> None:
        """Add a token."""
        others = [other for other, _ in logprobs.top]
        texts = dict(zip(others, self._decoder.texts(others), strict=True))
        texts[token] = self._decoder.add(token)
        top = tuple((texts[other], logprob) for other, logprob in logprobs.top)
        self._waiting.append(ScoredToken(texts[token], logprobs.token, top))

    def take(self) -> tuple[ScoredToken, ...]:
        """The tokens since the last call."""
        taken, self._waiting = tuple(self._waiting), []
        return taken

    def finish(self, ended: bool) -> tuple[ScoredToken, ...]:
        """The tokens since the last call of `take`.

        Args:
            ended: The last token ended the answer. It is left out, unless it has a text.
        """
        rest = self._decoder.finish()
        if rest and self._waiting:
            self._waiting[-1] = replace(self._waiting[-1], text=self._waiting[-1].text + rest)
        if ended and self._waiting and not self._waiting[-1].text:
            self._waiting.pop()
        return self.take()
