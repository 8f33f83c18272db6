"""`RepetitionGuard` stops texts that loop. OCR models that lose their place repeat a piece until the length limit."""

from dataclasses import dataclass

import torch
from transformers import StoppingCriteria

from mmchat.errors import UserError


@dataclass(frozen=True)
class Loop:
    """Where a text loops: the tokens from `begin` to `end` repeat with `period`."""

    begin: int
    period: int
    end: int


class RepetitionGuard(StoppingCriteria):
    """Stops each row of a batch that ends in `repeats` copies of a piece of 1 to `max_period` tokens.

    The copies must also span `min_tokens`, because dots, rules and empty table cells repeat legitimately. Rows are
    independent of each other.

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
        self.periods = torch.arange(1, max_period + 1)
        self.needed = (self.periods * repeats).clamp(min=min_tokens)
        self.runs: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """Which rows loop. Must be called after every new token, beginning with the first.

        Args:
            input_ids: int[B, T], prompt and new tokens.
            scores: Ignored.
            **kwargs: Ignored.

        Returns:
            bool[B].
        """
        if self.runs is None:
            rows, device = len(input_ids), input_ids.device
            self.prompt_length = input_ids.shape[1] - 1
            self.periods, self.needed = self.periods.to(device), self.needed.to(device)
            self.runs = torch.zeros(rows, len(self.periods), dtype=torch.long, device=device)
            self.found = torch.zeros(rows, 2, dtype=torch.long, device=device)  # period and end; 0: no loop yet
        new = input_ids[:, self.prompt_length :]
        length = new.shape[1]
        reach = min(len(self.periods), length - 1)
        same = new[:, -1:] == new[:, length - 1 - reach : length - 1].flip(1)
        self.runs[:, :reach] = (self.runs[:, :reach] + 1) * same
        loops = self.runs + self.periods >= self.needed
        period = loops.int().argmax(1) + 1  # the shortest
        first = loops.any(1) & (self.found[:, 1] == 0)
        self.found[first] = torch.stack([period, torch.full_like(period, length)], dim=1)[first]
        return loops.any(1)

    def loops(self) -> list[Loop | None]:
        """The first loop of each row, or None."""
        needed = self.needed.tolist()
        return [
            Loop(begin=end - needed[period - 1], period=period, end=end) if end else None
            for period, end in self.found.tolist()
        ]
