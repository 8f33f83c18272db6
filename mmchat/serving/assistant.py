"""A `Generator` as the server sees it. Importing this module imports torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmchat.inference.answer import Answer
from mmchat.inference.engine import EngineSettings
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

    def complete(self, text: str, **options: Any) -> Answer:
        """Queue a text that is continued; see `Generator.complete`."""
        return self._generator.complete(text, **options)

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
