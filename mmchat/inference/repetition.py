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


class RepetitionGuard:
    """Stops a text that ends in `repeats` copies of a piece of 1 to `max_period` tokens.

    The copies must also span `min_tokens`, because dots, rules and empty table cells repeat legitimately.

    For each period p the guard counts how many of the last tokens equal the one p positions before.

    Args:
        repeats: Number of copies, at least 2.
        max_period: Longest piece, in tokens.
        min_tokens: Shortest loop, in tokens.

    Raises:
        UserError: `repeats` is less than 2.
    """

    def __init__(self, repeats: int = 8, max_period: int = 64, min_tokens: int = 64) -> None:
        if repeats < 2:
            raise UserError(f"repeats must be at least 2, found {repeats}")
        periods = np.arange(1, max_period + 1)
        self.loop: Loop | None = None
        """The first loop."""
        self._needed = np.maximum(periods * repeats, min_tokens)
        self._missing = self._needed - periods
        self._runs = np.zeros_like(periods)

    def __call__(self, ids: Sequence[int]) -> bool:
        """Whether the text loops. Must be called after every new token, beginning with the first.

        Args:
            ids: The new tokens.
        """
        reach = min(len(self._runs), len(ids) - 1)
        same = np.asarray(ids[-reach - 1 : -1])[::-1] == ids[-1]
        self._runs[:reach] = (self._runs[:reach] + 1) * same
        loops = self._runs >= self._missing
        if not loops.any():
            return False
        if self.loop is None:
            shortest = int(loops.argmax())
            self.loop = Loop(len(ids) - int(self._needed[shortest]), shortest + 1, len(ids))
        return True
