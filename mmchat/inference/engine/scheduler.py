"""Which request is where, and what the next step computes. Plain Python: no tensor is touched here."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from mmchat.inference.engine.request import Handle, Prompt, Request


@dataclass(eq=False)
class Running:
    """An admitted request."""

    handle: Handle
    request: Request
    prompt: Prompt
    limit: int
    """Most new tokens."""
    slot: int = -1
    filled: int = 0
    """Tokens of the prompt that are in the cache."""
    ids: list[int] = field(default_factory=list)
    """New tokens. The last is not in the cache yet."""
    embeddings: Any = None
    """float[L, D] of the prompt until it is in the cache."""
    sampler: Any = None

    @property
    def prefilling(self) -> bool:
        """Whether the prompt is not in the cache yet."""
        return self.filled < len(self.prompt.input_ids)

    @property
    def cached(self) -> int:
        """Tokens in the cache."""
        return self.filled + max(len(self.ids) - 1, 0)


@dataclass(frozen=True)
class Chunk:
    """A piece of one prompt, or several whole prompts of similar length."""

    rows: list[Running]
    lengths: list[int]


class Scheduler:
    """Slots and the requests in them.

    Decode steps compute all slots from the lowest to the highest one that decodes. Slots between that are free or still
    prefill are computed too and their result is dropped; this costs less than moving a request's cache. Free slots at
    the end cost nothing, so requests are moved down once no other request waits for the hole (`moves`).

    Args:
        slots: Number of slots.
        chunk: Most tokens of a prefill step.
    """

    PADDING = 0.25
    """Largest share of padding in a group of prompts."""

    def __init__(self, slots: int, chunk: int) -> None:
        self.chunk = chunk
        self.slots: list[Running | None] = [None] * slots
        self.prefilling: deque[Running] = deque()
        self._ready: list[tuple[int, int, Running]] = []
        self._numbers = count()

    @property
    def running(self) -> list[Running]:
        """The requests in slots, by slot."""
        return [one for one in self.slots if one is not None]

    @property
    def waiting(self) -> int:
        """Number of requests that could be admitted."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._ready and not self.running

    def add(self, request: Running) -> None:
        """Queue a request behind those of its priority."""
        heapq.heappush(self._ready, (-request.request.priority, next(self._numbers), request))

    def admit(self) -> list[Running]:
        """Move queued requests to free slots, lowest slot first.

        Returns:
            The requests that were admitted.
        """
        admitted = []
        free = iter([slot for slot, one in enumerate(self.slots) if one is None])
        slot = next(free, None)
        while self._ready and slot is not None:
            request = heapq.heappop(self._ready)[2]
            if request.handle.done:  # cancelled while it waited
                continue
            request.slot, self.slots[slot] = slot, request
            self.prefilling.append(request)
            admitted.append(request)
            slot = next(free, None)
        return admitted

    def next_chunk(self) -> Chunk | None:
        """What to prefill next, in order of admission; None if nothing is."""
        if not self.prefilling:
            return None
        first = self.prefilling[0]
        left = len(first.prompt.input_ids) - first.filled
        if first.filled or left > self.chunk:
            return Chunk([first], [min(left, self.chunk)])
        rows, lengths = [first], [left]
        for other in list(self.prefilling)[1:]:
            candidate = [*lengths, len(other.prompt.input_ids)]
            padded = max(candidate) * len(candidate)
            if padded > self.chunk or sum(candidate) < (1 - self.PADDING) * padded:
                break
            rows.append(other)
            lengths = candidate
        return Chunk(rows, lengths)

    def prefilled(self, chunk: Chunk) -> list[Running]:
        """Note that a chunk is in the cache.

        Returns:
            The requests whose prompt is complete.
        """
        complete = []
        for row, length in zip(chunk.rows, chunk.lengths, strict=True):
            row.filled += length
            if not row.prefilling:
                self.prefilling.remove(row)
                complete.append(row)
        return complete

    def decode_span(self) -> tuple[int, int] | None:
        """First and last slot + 1 of a decode step; None if no slot decodes."""
        decoding = [one.slot for one in self.running if one.ids]
        return (min(decoding), max(decoding) + 1) if decoding else None

    def leave(self, request: Running) -> None:
        """Free the slot of a request."""
        self.slots[request.slot] = None
        if request in self.prefilling:
            self.prefilling.remove(request)

    def moves(self) -> list[tuple[int, int, int]]:
        """Close holes by moving the highest requests down. Call it after `admit`.

        Returns:
            Moves to make in this order: source slot, target slot, tokens.
        """
        made = []
        for target, one in enumerate(self.slots):
            if one is None:
                top = max((other.slot for other in self.running), default=-1)
                if top <= target:
                    break
                moved = self.slots[top]
                assert moved is not None
                made.append((top, target, moved.cached))
                self.slots[top], self.slots[target], moved.slot = None, moved, target
        return made

    def drop_all(self) -> Sequence[Running]:
        """Forget all requests, and return them."""
        dropped = [*self.running, *(entry[2] for entry in self._ready)]
        self.slots = [None] * len(self.slots)
        self._ready.clear()
        self.prefilling.clear()
        return dropped
