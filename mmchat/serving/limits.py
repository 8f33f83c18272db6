"""Limits that are counted over requests: rate by key, bytes held, answers in flight. For one thread only."""

import time
from collections.abc import Callable

from mmchat.serving.errors import ApiError


class RateLimit:
    """A token bucket for each caller. It starts full, and a minute fills it.

    Args:
        per_minute: Requests a minute, also the size of the bucket. None: no limit.
        clock: Seconds.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> None:
        """Count one request.

        Raises:
            ApiError: 429. The caller has used up its minute.
        """
        if self._per_minute is None:
            return
        size, now = max(1.0, self._per_minute), self._clock()
        left, since = self._buckets.get(caller, (size, now))
        left = min(size, left + (now - since) * self._per_minute / 60)
        if left < 1:
            self._buckets[caller] = left, now
            wait = (1 - left) * 60 / self._per_minute
            message = f"{self._per_minute:g} requests a minute are allowed for each key; try again in {wait:.0f} s"
            raise ApiError(429, message, "rate_limit_exceeded", retry_after=wait)
        self._buckets[caller] = left - 1, now


class Budget:
    """A number of things that may be held at once.

    Args:
        size: The most.
        refusal: The error for what does not fit.
    """

    def __init__(self, size: int, refusal: Callable[[], ApiError]) -> None:
        self.size, self.held = size, 0
        self._refusal = refusal

    def take(self, count: int) -> None:
        """Hold `count` more.

        Raises:
            ApiError: They do not fit; none is held then.
        """
        if self.held + count > self.size:
            raise self._refusal()
        self.held += count

    def give(self, count: int) -> None:
        """Hold `count` less."""
        self.held -= count
        assert self.held >= 0
