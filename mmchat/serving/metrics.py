"""What a server counts, in Prometheus' text format. Names begin with `mmchat_`."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmchat.extras import require

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histograms' buckets."""
THROUGHPUT_SECONDS = 10.0
"""Span over which tokens per second are averaged."""


@dataclass(frozen=True)
class EngineState:
    """A moment of an engine."""

    decoded: int = 0
    """Tokens made by decode steps so far."""
    slots: int = 0
    slots_used: int = 0
    cache_bytes: int = 0
    mean_batch: float = 0.0


class Throughput:
    """Tokens per second over the last seconds, from a count that only grows.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, count: int) -> None:
        """Take the count of now. Call it about once a second."""
        now = self._clock()
        self._samples.append((now, count))
        while len(self._samples) > 2 and self._samples[1][0] <= now - THROUGHPUT_SECONDS:
            self._samples.popleft()

    @property
    def per_second(self) -> float:
        """Tokens per second between the first and the last sample."""
        if len(self._samples) < 2:
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0


class Metrics:
    """All metrics of a server, in a registry of their own."""

    def __init__(self) -> None:
        require("prometheus_client")
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        here: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("mmchat_requests", "Requests by route and HTTP status.", ["route", "status"], **here)
        self.refused = Counter("mmchat_refused", "Requests refused, by the error's code.", ["code"], **here)
        self.disconnected = Counter("mmchat_disconnected", "Requests whose caller left before the answer.", **here)
        self.prompt_tokens = Counter("mmchat_prompt_tokens", "Tokens of prompts, images included.", **here)
        self.shared_tokens = Counter("mmchat_shared_prompt_tokens", "Of these, taken from another request.", **here)
        self.new_tokens = Counter("mmchat_generated_tokens", "Tokens of complete answers.", **here)
        self.images = Counter("mmchat_images", "Images of requests.", **here)
        self.first_token = Histogram(
            "mmchat_time_to_first_token_seconds", "From the request to its first text.", buckets=SECONDS, **here
        )
        self.duration = Histogram(
            "mmchat_request_seconds", "From the request to the end of its answer.", buckets=SECONDS, **here
        )
        self.queued = Gauge("mmchat_answers_queued", "Answers without a token yet.", **here)
        self.running = Gauge("mmchat_answers_running", "Answers that are being made.", **here)
        self.buffered = Gauge("mmchat_buffered_bytes", "Bodies of requests that are held.", **here)
        self.tokens_per_second = Gauge(
            "mmchat_tokens_per_second", f"Decoded tokens, mean of the last {THROUGHPUT_SECONDS:.0f} s.", **here
        )
        self.slots = Gauge("mmchat_cache_slots", "Slots that the key-value cache may have.", **here)
        self.slots_used = Gauge("mmchat_cache_slots_used", "Slots that hold a request.", **here)
        self.cache_bytes = Gauge("mmchat_cache_bytes", "Memory of the key-value cache.", **here)
        self.mean_batch = Gauge("mmchat_mean_decode_batch", "Requests in a decode step, mean since the start.", **here)
        self.throughput = Throughput()

    def text(self, engine: EngineState, queued: int, running: int, buffered: int) -> bytes:
        """The text that Prometheus reads."""
        from prometheus_client import generate_latest

        for gauge, value in (
            (self.queued, queued),
            (self.running, running),
            (self.buffered, buffered),
            (self.tokens_per_second, self.throughput.per_second),
            (self.slots, engine.slots),
            (self.slots_used, engine.slots_used),
            (self.cache_bytes, engine.cache_bytes),
            (self.mean_batch, engine.mean_batch),
        ):
            gauge.set(value)
        return generate_latest(self.registry)
