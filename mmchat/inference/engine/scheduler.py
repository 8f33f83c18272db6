"""Which request is where, and what the next step computes. Plain Python: no tensor is touched here."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from mmchat.inference.engine.cache_size import CacheLimits, CacheSize, next_size
from mmchat.inference.engine.prefixes import common_length
from mmchat.inference.engine.request import Handle, Prompt, Request

Copy = tuple[int, int, int]
"""Source slot, target slot, and number of tokens, counted from the beginning."""


@dataclass(eq=False)
class Running:
    """A request that is in a slot or waits for one."""

    handle: Handle
    request: Request
    prompt: Prompt
    keys: np.ndarray
    """int64[L] of the prompt (`prompt_keys`)."""
    limit: int
    """Most new tokens."""
    slot: int = -1
    filled: int = 0
    """Tokens of the prompt that are in the cache."""
    ids: list[int] = field(default_factory=list)
    """New tokens. The last is not in the cache yet."""
    embeddings: Any = None
    """float[L', D] of the last L' tokens of the prompt until they are in the cache."""
    sampler: Any = None

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.keys)

    @property
    def needs(self) -> int:
        """Tokens that it may come to."""
        return self.length + self.limit

    @property
    def prefilling(self) -> bool:
        """Whether the prompt is not in the cache yet."""
        return self.filled < self.length

    @property
    def cached(self) -> int:
        """Tokens in the cache."""
        return self.filled + max(len(self.ids) - 1, 0)

    @property
    def content(self) -> np.ndarray:
        """int64[cached]: keys of the tokens in the cache."""
        return np.concatenate([self.keys[: self.filled], np.array(self.ids[:-1], dtype=np.int64)])


@dataclass(frozen=True)
class Chunk:
    """A piece of one prompt, or several whole prompts of similar length."""

    rows: list[Running]
    lengths: list[int]


class Scheduler:
    """Slots and the requests in them.

    The slot of a finished request keeps its tokens until another request needs the slot. A request that begins alike
    takes them over (`admit`).

    Decode steps compute all slots from the lowest to the highest one that decodes. Slots between that are free or still
    prefill are computed too and their result is dropped; this costs less than moving a request's cache. Where more than
    half would be computed for nothing, requests are moved down (`close_holes`).

    Args:
        limits: Of the cache.
        chunk: Most tokens of a prefill step.
        packs: Whether several prompts are computed without padding.
    """

    PADDING = 0.25
    """Largest share of padding in a group of prompts, where there is padding."""
    SHARED = 0.5
    """Smallest share of a prompt that is taken over. Prompts that take over something are prefilled one by one, so a
    short common beginning costs more than it saves."""

    def __init__(self, limits: CacheLimits, chunk: int, packs: bool = False) -> None:
        self.limits = limits
        self.packs = packs
        self.chunk = chunk
        self.size = CacheSize()
        self.slots: list[Running | None] = []
        self.kept: list[np.ndarray | None] = []
        """What free slots hold: keys of the tokens of the last request there."""
        self.prefilling: deque[Running] = deque()
        self._ready: list[tuple[int, int, Running]] = []
        self._numbers = count()
        self._last_use: list[int] = []

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

    def next_size(self) -> CacheSize:
        """The size that the cache should have for the first request that waits; the present one if it must wait."""
        while self._ready and self._ready[0][2].handle.done:  # cancelled while it waited
            heapq.heappop(self._ready)
        if not self._ready:
            return self.size
        first = heapq.nsmallest(self.limits.slots, self._ready)
        needs = [one.needs for *_, one in first if not one.handle.done]
        kept = sum(content is not None for content in self.kept)
        return next_size(self.size, self.limits, len(self.running), kept, needs) or self.size

    def resize(self, size: CacheSize) -> list[Copy]:
        """Change the number of slots and their length.

        Returns:
            Copies to make before the cache is resized.
        """
        copies = self._compact() if size.slots < self.size.slots else []
        grown = max(size.slots - self.size.slots, 0)
        self.slots = [*self.slots, *[None] * grown][: size.slots]
        self.kept = [*self.kept, *[None] * grown][: size.slots]
        self._last_use = [*self._last_use, *[0] * grown][: size.slots]
        self.size = size
        for slot, content in enumerate(self.kept):
            self._keep(slot, content)
        return copies

    def admit(self) -> list[Copy]:
        """Move queued requests to free slots.

        Returns:
            Copies to make, in this order.
        """
        copies: list[Copy] = []
        later = []
        while self._ready:
            entry = heapq.heappop(self._ready)
            request = entry[2]
            if request.handle.done:  # cancelled while it waited
                continue
            source, shared = self._longest_prefix(request)
            if self._comes_soon(request, shared):
                later.append(entry)
                continue
            slot = self._free_slot(source, shared) if request.needs <= self.size.length else None
            if slot is None:
                later.append(entry)
                break
            if shared and slot != source:
                copies.append((source, slot, shared))
            request.slot, request.filled, self.slots[slot], self.kept[slot] = slot, shared, request, None
            request.handle.shared_tokens = shared
            self.prefilling.append(request)
        for entry in later:
            heapq.heappush(self._ready, entry)
        return copies

    def _longest_prefix(self, request: Running) -> tuple[int, int]:
        """The slot that begins most like a prompt, and the number of tokens to take over; the last is always new."""
        found = (-1, 0)
        for slot, (one, kept) in enumerate(zip(self.slots, self.kept, strict=True)):
            content = kept if one is None else one.keys[: one.filled]
            if content is not None:
                found = max(found, (slot, self._shareable(request, content)), key=lambda pair: pair[1])
        return found

    def _shareable(self, request: Running, content: np.ndarray) -> int:
        shared = common_length(request.keys[:-1], content)
        return shared if shared >= self.SHARED * request.length else 0

    def _comes_soon(self, request: Running, shared: int) -> bool:
        """Whether a prompt that is being prefilled will leave more to take over."""
        return any(self._shareable(request, one.keys) > shared for one in self.prefilling)

    def _free_slot(self, source: int, shared: int) -> int | None:
        """The slot for a request that takes over `shared` tokens of `source`; None if none is free."""
        free = [slot for slot, one in enumerate(self.slots) if one is None]
        if not free:
            return None
        kept = self.kept[source] if source in free else None
        if shared and kept is not None and 2 * shared >= len(kept):  # most of it is of use
            return source
        return min(free, key=lambda slot: (slot == source, self.kept[slot] is not None, self._last_use[slot], slot))

    def next_chunk(self) -> Chunk | None:
        """What to prefill next, in order of admission; None if nothing is."""
        if not self.prefilling:
            return None
        first = self.prefilling[0]
        left = first.length - first.filled
        if first.filled or left > self.chunk:
            return Chunk([first], [min(left, self.chunk)])
        rows, lengths = [first], [left]
        for other in list(self.prefilling)[1:]:
            candidate = [*lengths, other.length]
            computed = sum(candidate) if self.packs else max(candidate) * len(candidate)
            if other.filled or computed > self.chunk or sum(candidate) < (1 - self.PADDING) * computed:
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

    def next_position(self, slot: int) -> int:
        """Where the next token of a slot goes; for a free slot, a place that nothing is kept in."""
        one, kept = self.slots[slot], self.kept[slot]
        if one is not None:
            return one.cached
        return 0 if kept is None else len(kept)

    def leave(self, request: Running, keep: bool = True) -> None:
        """Free the slot of a request.

        Args:
            request: The request.
            keep: Whether another request may take over its tokens.
        """
        slot = request.slot
        self.slots[slot] = None
        self._last_use[slot] = next(self._numbers)
        self._keep(slot, request.content if keep else None)
        if request in self.prefilling:
            self.prefilling.remove(request)

    def _keep(self, slot: int, content: np.ndarray | None) -> None:
        """Note what a free slot holds. One position stays free for decode steps that compute the slot for nothing."""
        self.kept[slot] = None if content is None or not len(content) else content[: self.size.length - 1]

    def close_holes(self) -> list[Copy]:
        """Move requests down if decode steps would compute more slots for nothing than of use.

        Returns:
            Copies to make, in this order.
        """
        slots = [one.slot for one in self.running]
        return self._compact() if slots and max(slots) - min(slots) + 1 > 2 * len(slots) else []

    def _compact(self) -> list[Copy]:
        """Move the highest requests to the lowest free slots."""
        copies: list[Copy] = []
        for target, one in enumerate(self.slots):
            if one is None:
                top = max((other.slot for other in self.running), default=-1)
                if top <= target:
                    break
                moved = self.slots[top]
                assert moved is not None
                copies.append((top, target, moved.cached))
                self.slots[top], self.slots[target], moved.slot = None, moved, target
                self.kept[top] = self.kept[target] = None
        return copies

    def drop_all(self) -> Sequence[Running]:
        """Forget all requests, and return them."""
        dropped = [*self.running, *(entry[2] for entry in self._ready)]
        self.slots = [None] * len(self.slots)
        self.kept = [None] * len(self.slots)
        self._ready.clear()
        self.prefilling.clear()
        return dropped
