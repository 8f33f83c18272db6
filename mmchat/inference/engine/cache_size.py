"""How large the key-value cache is, and when it grows. Plain Python: no tensor is touched here."""

from collections.abc import Sequence
from dataclasses import dataclass

STEP = 128
"""The length of slots is a multiple of this, so that requests of similar length do not each make the cache grow."""


@dataclass(frozen=True)
class CacheLimits:
    """What a cache may grow to."""

    slots: int
    """Most requests at once."""
    length: int
    """Most tokens of a request, prompt and answer."""
    token_bytes: int
    """Memory of one token in all layers."""
    budget: int
    """Most bytes."""

    @property
    def longest(self) -> int:
        """Most tokens of a request that the budget holds, too."""
        return min(self.length, self.budget // self.token_bytes)

    def affordable(self, length: int) -> int:
        """Number of slots of this length."""
        return min(self.slots, self.budget // (length * self.token_bytes))

    def rounded(self, length: int) -> int:
        """Length of a slot that holds so many tokens."""
        return min(-(-length // STEP) * STEP, self.longest)


@dataclass(frozen=True)
class CacheSize:
    """Slots, and tokens per slot."""

    slots: int = 0
    length: int = 0


def next_size(size: CacheSize, limits: CacheLimits, running: int, kept: int, needs: Sequence[int]) -> CacheSize | None:
    """The size that the cache should have so that the first waiting request can be admitted.

    The cache starts empty and doubles its slots. It keeps room for finished requests, whose keys and values may be the
    beginning of the next request, but never makes a request wait for their sake. Slots are as long as the longest
    request needs. They become shorter only when nothing runs and more slots are of use.

    Args:
        size: The present size.
        limits: What it may grow to.
        running: Requests in slots.
        kept: Slots that hold a finished request.
        needs: Tokens that each waiting request may come to, in order, each at most `limits.longest`; at least one.

    Returns:
        The size, at least as large as `running` requests need; None if the first request must wait.
    """
    length = max(size.length, limits.rounded(needs[0]))
    wanted = min(limits.slots, running + kept + len(needs))
    if not running:
        fresh = limits.rounded(max(needs[: limits.slots]))
        if limits.affordable(length) < min(len(needs), limits.affordable(fresh)):
            length = fresh
    slots = limits.affordable(length)
    if slots <= running:
        return None
    doubled = 1 << (wanted - 1).bit_length()
    if length >= size.length:
        doubled = max(size.slots, doubled)
    return CacheSize(min(slots, doubled), length)
