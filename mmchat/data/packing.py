"""Packing: the samples of a step concatenated in rows without padding.

A step holds the same samples packed or not, so packing does not affect the order of samples: losses, schedule, epochs
and resume are those of the padded run. Only the division of a step over ranks and forwards differs, and that is a pure
function of the samples' lengths.

For a language model that does not support packing, `length_grouping` pads samples of similar length together under the
same contract.
"""

import math
from collections.abc import Callable

import numpy as np
from pydantic import Field

from mmchat.settings import settings


@settings
class PackingConfig:
    tokens: int | None = Field(None, gt=0, description="maximum tokens of one forward; null: data.max_length")
    images: int | None = Field(
        None, gt=0, description="maximum images of one forward, each tile counted; null: no limit"
    )
    padded: bool = Field(
        False,
        description="pad samples of similar length together instead of concatenating them, for models without packing "
        "support; tokens then counts padding",
    )


def pack(sizes: np.ndarray, budget: np.ndarray, ranks: int) -> list[list[list[int]]]:
    """Distribute samples over packed rows.

    Samples are placed longest first, each into the row with the fewest tokens, so that all rows take about as long
    (longest processing time first, Graham 1969). If a sample does not fit, all samples are placed again, each into the
    fullest row with room (best fit decreasing, which wastes least). If that fails too, there is one more round.

    Args:
        sizes: int[samples, 2], tokens and views. Each sample fits into an empty row.
        budget: float[2], the maximum tokens and views of a row.
        ranks: Number of ranks.

    Returns:
        Rows by [round][rank], each a list of indices into `sizes`. With few samples, some rows are empty.
    """
    assert (sizes <= budget).all(), "a sample does not fit into a row"
    rounds = max(1, math.ceil((sizes.sum(axis=0) / budget).max() / ranks))
    while True:
        for emptiest_first in (True, False):
            rows = _fill_rows(sizes, budget, rounds * ranks, emptiest_first)
            if rows is not None:
                return assign_to_ranks(rows, lambda row: sizes[row, 0].sum(), ranks)
        rounds += 1


def _fill_rows(sizes: np.ndarray, budget: np.ndarray, count: int, emptiest_first: bool) -> list[list[int]] | None:
    """The samples in `count` rows, or None if a sample does not fit."""
    rows: list[list[int]] = [[] for _ in range(count)]
    held = np.zeros((count, 2), np.int64)
    for place in np.argsort(-sizes[:, 0], kind="stable"):
        have_room = np.flatnonzero((held + sizes[place] <= budget).all(axis=1))
        if not len(have_room):
            return None
        tokens = held[have_room, 0]
        row = have_room[tokens.argmin() if emptiest_first else tokens.argmax()]
        held[row] += sizes[place]
        rows[row].append(int(place))
    return rows


def assign_to_ranks(rows: list[list[int]], cost: Callable[[list[int]], int], ranks: int) -> list[list[list[int]]]:
    """Group rows of similar cost into rounds, because ranks may wait for each other after a round.

    The most expensive row goes to the first and the last rank in turn. Samples keep their order within a row.

    Returns:
        Rows by [round][rank].
    """
    rows = sorted(map(sorted, rows), key=lambda row: -cost(row))
    rounds = [rows[start : start + ranks] for start in range(0, len(rows), ranks)]
    return [by_rank[:: -1 if number % 2 else 1] for number, by_rank in enumerate(rounds)]
