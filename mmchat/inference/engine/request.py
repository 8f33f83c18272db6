"""What is asked of the engine (`Request`), and what the caller holds while it is answered (`Handle`)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import Any, Literal

import torch
from transformers import GenerationConfig, LogitsProcessor

from mmchat.errors import UserError

FinishReason = Literal["end", "length", "stop", "cancelled"]
"""The model ended the text, a limit was reached, a stop string or `stop_when` ended it, or the caller cancelled it."""

MOST_LOGPROBS = 20
"""As in OpenAI's API."""


@dataclass(frozen=True)
class Prompt:
    """The input of one request."""

    input_ids: Sequence[int]
    """Token ids, image slots expanded."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """`MMChatProcessor.image_inputs` of the images, in order; empty without images."""
    image_keys: Sequence[tuple[str, int]] = ()
    """For each image, a key of its content (`content_key`) and its number of slots. With them, a later prompt that
    begins with the same images and text takes over what was computed."""
    embeddings: torch.Tensor | None = None
    """float[L, D] in place of embedded ids and images. The ids still count for the repetition penalty."""


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it. Sampling settings have the names and meaning of `GenerationConfig`.

    A setting that is None is taken from the model's generation config, then from transformers' defaults.

    Raises:
        UserError: A setting is out of range.
    """

    prompt: Prompt | Callable[[], Prompt]
    """A function is called in a worker thread shortly before its turn, for example to decode images."""
    max_new_tokens: int = 128
    """Fewer are made where the context or the length of a slot ends."""
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_id: int | Sequence[int] | None = None
    """Ids that end the text; `()` for none."""
    seed: int | None = None
    """Seed of this request's own generator; None draws one."""
    processors: Sequence[LogitsProcessor] = ()
    """Applied to the logits before the sampling settings, as `generate` does. They belong to this request alone."""
    top_logprobs: int | None = None
    """Log probabilities are kept (`Result.logprobs`), with those of so many most probable tokens; None: none are."""
    stop_strings: Sequence[str] = ()
    """The text ends with the token that completes one of them."""
    stop_when: Callable[[list[int]], bool] | None = None
    """Called with the new ids after each token; True ends the text."""
    priority: int = 0
    """Higher ones are admitted first; equal ones in the order of submission."""

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature is None or 0 < self.temperature < math.inf, "a finite number above 0"),
            "top_k": (self.top_k is None or self.top_k >= 0, "at least 0"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (
                self.repetition_penalty is None or 0 < self.repetition_penalty < math.inf,
                "a finite number above 0",
            ),
            "top_logprobs": (
                self.top_logprobs is None or 0 <= self.top_logprobs <= MOST_LOGPROBS,
                f"from 0 to {MOST_LOGPROBS}",
            ),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
            "stop_strings": (not isinstance(self.stop_strings, str) and all(self.stop_strings), "a list of texts"),
        }
        for name, (valid, expected) in checks.items():
            if not valid:
                raise UserError(f"{name} must be {expected}, found {getattr(self, name)!r}")

    def with_defaults(self, config: GenerationConfig) -> "Request":
        """This request with every sampling setting filled in, as `generate` would fill it."""
        defaults = GenerationConfig._get_default_generation_params()
        values: dict[str, Any] = {}
        for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "eos_token_id"):
            value = getattr(self, name)
            value = getattr(config, name, None) if value is None else value
            values[name] = defaults.get(name) if value is None else value
        ends = values["eos_token_id"]
        values["eos_token_id"] = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
        return replace(self, **values)


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities (natural logarithm) at one new token, from the model's logits before any setting."""

    token: float
    """Of the token."""
    top: tuple[tuple[int, float], ...]
    """The most probable tokens, best first: id and log probability."""


@dataclass(frozen=True)
class Result:
    """The answer to one request."""

    ids: tuple[int, ...]
    """New token ids. The id that ended the text is the last, as in `generate`."""
    reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    """For each id, if the request asks for them."""


class Handle:
    """A submitted request. Iterating yields its token ids as they are made.

    All methods may be called from any thread.

    Args:
        request: The request.
        wake: Called after `cancel`, so that the engine frees the slot.
    """

    def __init__(self, request: Request, wake: Callable[[], None]) -> None:
        self.request = request
        self.prompt_tokens = 0
        """Tokens of the prompt with those of its images; 0 until it is prepared."""
        self.shared_tokens = 0
        """Of these, tokens whose keys and values were taken from another request."""
        self._wake = wake
        self._changed = Condition()
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._reason: FinishReason | None = None
        self._error: BaseException | None = None

    @property
    def logprobs(self) -> Sequence[TokenLogprobs]:
        """Those of the tokens that were made so far, if the request asks for them."""
        return self._logprobs

    @property
    def done(self) -> bool:
        """Whether no more tokens will come."""
        return self._reason is not None or self._error is not None

    def cancel(self) -> None:
        """Stop this request. Tokens made so far are kept; a finished request is not changed."""
        self.finish("cancelled")
        self._wake()

    def __iter__(self) -> Iterator[int]:
        """The token ids, each as soon as it is made. Raises what `result` raises."""
        position = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.done or len(self._ids) > position)  # noqa: B023
                new, ended = self._ids[position:], self.done
            yield from new
            position += len(new)
            if ended and position == len(self._ids):
                break
        self._raise()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until no more tokens will come. Arguments and TimeoutError as in `result`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"no answer within {timeout} s")

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the answer.

        Args:
            timeout: Seconds to wait; None: until it is there.

        Raises:
            TimeoutError: It is not there in time.
            Exception: What made this request fail.
        """
        self.wait(timeout)
        self._raise()
        assert self._reason is not None
        return Result(tuple(self._ids), self._reason, tuple(self._logprobs))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # Of the engine's thread:

    def push(self, token: int, logprobs: TokenLogprobs | None = None) -> None:
        """Add a token, unless the request was cancelled."""
        with self._changed:
            if not self.done:
                if logprobs is not None:
                    self._logprobs.append(logprobs)
                self._ids.append(token)
                self._changed.notify_all()

    def finish(self, reason: FinishReason) -> None:
        """Close with a reason. The first close counts."""
        with self._changed:
            if not self.done:
                self._reason = reason
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Close with an error. The first close counts."""
        with self._changed:
            if not self.done:
                self._error = error
            self._changed.notify_all()
