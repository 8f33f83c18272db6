"""What an answer is made of: pieces while it is made, the reply when it is complete. Imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mmchat.inference.engine import TokenLogprobs

Reason = Literal["end", "length", "stop", "repetition", "cancelled"]
"""The model ended the text, a limit was reached, a stop string came, the text looped, or it was cancelled."""


@dataclass(frozen=True)
class ScoredToken:
    """A token of an answer as text, with log probabilities (natural logarithm, before any sampling setting)."""

    text: str
    """The texts of all tokens together are the answer, the stop string and white space around it included. Within a
    character of several tokens only the last has a text."""
    logprob: float
    top: tuple[tuple[str, float], ...]
    """The most probable tokens in its place, best first. A part of a character is U+FFFD."""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer, as it is made."""

    text: str
    tokens: tuple[ScoredToken, ...] = ()
    """The tokens since the piece before, if log probabilities are asked for."""


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
    logprobs: "tuple[TokenLogprobs, ...]" = ()
    """For each token, if asked for."""
    tokens: tuple[ScoredToken, ...] = ()
    """The tokens of the text, if log probabilities are asked for. The one that ended it has no text and is left out."""
