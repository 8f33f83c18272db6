"""A `Generator` as the server sees it. Importing this module imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmchat.conversation.safe_tokenizer import safe_tokenizer_for
from mmchat.inference.answer import Answer
from mmchat.inference.engine import EngineSettings, Prompt, Request
from mmchat.inference.generator import Generator
from mmchat.serving.metrics import EngineState


class ServedAssistant:
    """An assistant that is loaded for serving.

    Args:
        model_dir: A model directory.
        settings: Limits of the engine.
        **where: `device`, `dtype` and `quantize` of `Generator`.

    Raises:
        UserError: As in `Generator`.
    """

    def __init__(self, model_dir: Path, settings: EngineSettings, **where: Any) -> None:
        self._generator = Generator(model_dir, **where, settings=settings)

    def chat(self, messages: Sequence[dict[str, Any]], images: Sequence[Any], **options: Any) -> Answer:
        """Queue a conversation; see `Generator.submit`."""
        return self._generator.submit(messages, images, **options)

    def complete(
        self,
        text: str,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float | None,
        top_k: int | None,
        repetition_penalty: float | None,
        seed: int | None,
        stop: Sequence[str],
        top_logprobs: int | None,
    ) -> Answer:
        """Queue a text that is continued. Options and errors as in `Generator.submit`."""
        tokenizer = self._generator.tokenizer
        safe = safe_tokenizer_for(tokenizer)
        ids = [*safe.prefix, *safe.encode(text).ids]
        request = Request(
            Prompt(ids),
            max_new_tokens,
            do_sample=temperature != 0,
            temperature=temperature or None,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            top_logprobs=top_logprobs,
            stop_strings=stop,
        )
        return Answer(self._generator.engine.submit(request), tokenizer, stop, after=ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special tokens included."""
        return self._generator.tokenizer.decode(list(ids))

    def state(self) -> EngineState:
        """What the engine does now."""
        engine = self._generator.engine
        status, counters = engine.status, engine.counters
        return EngineState(
            counters.decoded, engine.limits.slots, status.running, status.cache_bytes, counters.mean_batch
        )

    def close(self) -> None:
        """Cancel what runs."""
        self._generator.close()
