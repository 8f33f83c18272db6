"""Limits of an engine."""

from dataclasses import dataclass

from mmchat.errors import UserError


@dataclass(frozen=True)
class EngineSettings:
    """Limits of an engine, all of them known before the first request."""

    slots: int = 16
    """Most requests in one decode step. Fewer where the budget does not hold them."""
    max_length: int | None = None
    """Most tokens of a request, prompt and answer. None: the model's context, or 4,096 where it has no limit."""
    cache_bytes: int | None = None
    """Most memory of the key-value cache, which grows as needed. None: half of the memory that is free at the start."""
    prefill_tokens: int = 1024
    """Most prompt tokens between two decode steps."""
    workers: int = 2
    """Threads that prepare prompts."""

    def __post_init__(self) -> None:
        for name in ("slots", "max_length", "cache_bytes", "prefill_tokens", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} of the engine must be at least 1, found {value}")
