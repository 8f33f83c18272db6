"""`RepetitionGuard` stops a text that loops. OCR models that lose their place repeat a piece until the length limit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmchat.errors import UserError


@dataclass(frozen=True)
class Loop:
    """Where a text loops: the tokens from `begin` to `end` repeat with `period`."""

    begin: int
    period: int
    end: int


REPEATS = 8
"""Copies of a short piece that are a loop."""
LONG_REPEATS, LONG_TOKENS = 3, 256
"""Copies of a piece of any length that are a loop if they span so many tokens."""


class RepetitionGuard:
    """Stops a text that ends in `repeats` copies of a piece of 1 to `max_period` tokens, or in three of any length.

    The copies must also span `min_tokens`, because dots, rules and empty table cells repeat legitimately; three copies
    must span 256 tokens.

    For each period p the guard counts how many of the last tokens equal the one p positions before.

    Args:
        repeats: Number of copies, at least 2.
        max_period: Longest piece, in tokens.
        min_tokens: Shortest loop, in tokens.

    Raises:
        UserError: `repeats` is less than 2.
    """

    def __init__(self, repeats: int = REPEATS, max_period: int = 64, min_tokens: int = 64) -> None:
        if repeats < 2:
            raise UserError(f"repeats must be at least 2, found {repeats}")
        self.loop: Loop | None = None
        """The first loop."""
        self._repeats, self._max_period, self._min_tokens = repeats, max_period, min_tokens
        self._count = 0
        self._runs = self._ids = np.zeros(0, np.int64)
        self._grow(512)

    def _grow(self, size: int) -> None:
        """Room for `size` tokens and periods."""
        periods = np.arange(1, size + 1)
        needed = np.maximum(periods * LONG_REPEATS, LONG_TOKENS)
        short = np.maximum(periods * self._repeats, self._min_tokens)[: self._max_period]
        needed[: len(short)] = np.minimum(short, needed[: len(short)])
        runs, ids = np.zeros(size, np.int64), np.zeros(size, np.int64)
        runs[: len(self._runs)], ids[: len(self._ids)] = self._runs, self._ids
        self._needed, self._missing, self._runs, self._ids = needed, needed - periods, runs, ids

    def __call__(self, ids: Sequence[int]) -> bool:
        """Whether the text loops. Must be called after every new token, beginning with the first.

        Args:
            ids: The new tokens.
        """
        reach = self._count
        if reach == len(self._ids):
            self._grow(2 * reach)
        self._ids[reach] = ids[-1]
        self._count += 1
        same = self._ids[:reach][::-1] == ids[-1]
        self._runs[:reach] = (self._runs[:reach] + 1) * same
        loops = self._runs[:reach] >= self._missing[:reach]
        if not loops.any():
            return False
        if self.loop is None:
            shortest = int(loops.argmax())
            self.loop = Loop(len(ids) - int(self._needed[shortest]), shortest + 1, len(ids))
        return True
