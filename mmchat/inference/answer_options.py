"""How an answer is made: the options of all methods of `Generator` that generate, and the request that follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import LogitsProcessor

from mmchat.inference.engine import Prompt, Request
from mmchat.inference.repetition import RepetitionGuard


@dataclass(frozen=True)
class AnswerOptions:
    """Options of one answer. Values out of range are refused when the request is made."""

    max_new_tokens: int = 128
    """Longest answer, in tokens. It is shorter where the context ends."""
    temperature: float = 0.0
    """0 decodes greedily. Above 0 the answer is sampled."""
    top_p: float | None = None
    """Sample from the most probable tokens with this sum of probabilities; None: the model's own setting."""
    top_k: int | None = None
    """Sample from this many tokens, 0 from all; None: the model's own setting."""
    repetition_penalty: float | None = None
    """Above 1, tokens that occurred become less probable; None: the model's own setting."""
    seed: int | None = None
    """Of the sampling; None draws one."""
    stop: Sequence[str] = ()
    """The answer ends before any of these strings."""
    repeats: int | None = None
    """The answer ends when it ends in this many copies of a piece (`RepetitionGuard`); None: never."""
    json_schema: Mapping[str, Any] | None = None
    """The answer is JSON that fits this schema, unless its length ends it. Needs the extra `json`."""
    top_logprobs: int | None = None
    """Keep log probabilities of the tokens, with those of so many most probable ones (`Reply.logprobs`); None: keep
    none."""
    priority: int = 0
    """Higher ones are admitted first."""

    def request(
        self,
        prompt: Prompt | Callable[[], Prompt],
        guard: RepetitionGuard | None,
        processors: Sequence[LogitsProcessor],
    ) -> Request:
        """The request for an answer with these options.

        Args:
            prompt: What is answered or continued.
            guard: Ends a text that loops, as `repeats` asks.
            processors: What enforces `json_schema`.

        Raises:
            UserError: An option is out of range.
        """
        return Request(
            prompt,
            self.max_new_tokens,
            do_sample=self.temperature != 0,
            temperature=self.temperature or None,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            processors=processors,
            top_logprobs=self.top_logprobs,
            stop_strings=self.stop,
            stop_when=guard,
            priority=self.priority,
        )
