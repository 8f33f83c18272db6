"""What an engine has done (`Counters`) and what it holds (`Status`)."""

from dataclasses import dataclass


@dataclass
class Counters:
    """What an engine has done."""

    decode_steps: int = 0
    decoded: int = 0
    """Tokens made by decode steps."""
    prefilled: int = 0
    """Tokens of prompts that were computed."""
    shared: int = 0
    """Tokens of prompts that were taken over from another request."""
    most_running: int = 0
    """Most requests in slots at once."""

    @property
    def mean_batch(self) -> float:
        """Mean number of requests in a decode step."""
        return self.decoded / max(self.decode_steps, 1)


@dataclass(frozen=True)
class Status:
    """What an engine holds."""

    waiting: int
    """Requests without a slot."""
    running: int
    """Requests in slots."""
    slots: int
    """Slots that are allocated; `Engine.limits` says how many there may be."""
    slot_length: int
    """Tokens per slot."""
    cache_bytes: int
    """Memory of the slots."""
