"""Answers that fit a JSON schema: tokens that cannot continue such a text are excluded (llguidance)."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from mmchat.errors import UserError
from mmchat.extras import require


class JsonSchemas:
    """Makes a `JsonProcessor` for each request. Preparing the tokenizer takes about a second, so keep this object.

    Args:
        tokenizer: A fast tokenizer.
        stops: The ids that end a text.

    Raises:
        UserError: llguidance is not installed, or the tokenizer is not fast.
    """

    def __init__(self, tokenizer, stops: list[int]) -> None:
        require("llguidance")
        from llguidance.hf import from_tokenizer

        if not tokenizer.is_fast:
            raise UserError("answers with a JSON schema need a tokenizer with a tokenizer.json")
        self._tokenizer = from_tokenizer(tokenizer, eos_token=stops)

    def processor(self, schema: Mapping[str, Any]) -> "JsonProcessor":
        """A processor for one request.

        Raises:
            UserError: The schema is not valid, or uses something that cannot be enforced.
        """
        from llguidance import LLMatcher

        # Without free white space, a model that is unsure cannot fill its answer with it.
        options: Any = {"whitespace_flexible": False}
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=options)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise UserError(f"the JSON schema cannot be used: {matcher.get_error().splitlines()[0]}")
        return JsonProcessor(matcher)


class JsonProcessor(LogitsProcessor):
    """Gives minus infinity to tokens that cannot follow.

    Args:
        matcher: llguidance's state of one request.
    """

    def __init__(self, matcher) -> None:
        self._matcher = matcher
        self._seen: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mask one row.

        Args:
            input_ids: int64[1, T]: prompt and new tokens. The first call has the prompt alone.
            scores: float[1, V].

        Returns:
            float[1, V].
        """
        if self._seen is not None:
            self._matcher.consume_tokens(input_ids[0, self._seen :].tolist())
        self._seen = input_ids.shape[1]
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if self._matcher.is_error():
            raise RuntimeError(f"JSON schema: {self._matcher.get_error()}")
        allowed = torch.zeros(scores.shape[1], dtype=torch.bool)
        size = min(len(bits), len(allowed))
        allowed[:size] = torch.from_numpy(bits[:size].astype(bool))
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)
