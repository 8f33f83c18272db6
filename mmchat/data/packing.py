"""Packing: a step's samples, one behind another, in rows without padding.

A step holds the same samples packed or not, so packing is no part of the order: losses, schedule, epochs and resume are
those of the padded run. Only how a step is shared out over ranks and forwards differs, and that is a pure function of
its samples' lengths.

A language model that cannot be packed takes samples of like length side by side instead, padded: the same contract.
"""

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from pydantic import Field

from mmchat.settings import settings


@settings
class PackingConfig:
    tokens: int | None = Field(None, gt=0, description="most tokens of one forward; null: data.max_length")
    images: int | None = Field(
        None, gt=0, description="most images of one forward, each tile of one counted; null: no limit"
    )
    padded: bool = Field(
        False,
        description="samples of like length side by side, padded, instead of one behind another, for models that "
        "cannot be packed; tokens then counts padding",
    )


def pack(sizes: np.ndarray, budget: np.ndarray, ranks: int) -> list[list[list[int]]]:
    """Rows by [round][rank], each a list of places in `sizes`; some are empty where samples are few.

    Longest first, a sample goes where the fewest tokens are, so that all rows take about as long (longest processing
    time first, Graham 1969). If one then fits nowhere, all go where the most tokens are that leave room (best fit
    decreasing, which wastes least), and if that fails too, there is another round.

    Args:
        sizes: int[samples, 2], tokens and views, each of which fits into an empty row.
        budget: float[2], the most tokens and views of a row.
    """
    assert (sizes <= budget).all(), "a sample that fits into no row"
    rounds = max(1, math.ceil((sizes.sum(axis=0) / budget).max() / ranks))
    while True:
        for emptiest_first in (True, False):
            rows = _filled(sizes, budget, rounds * ranks, emptiest_first)
            if rows is not None:
                return _dealt(rows, lambda row: sizes[row, 0].sum(), ranks)
        rounds += 1


def group(sizes: np.ndarray, budget: np.ndarray, ranks: int) -> list[list[list[int]]]:
    """Padded forwards by [round][rank]; arguments and result as for `pack`, but that a forward takes up
    samples x longest sample of the budget's tokens.

    Samples are cut into forwards in the order of their length, which wastes least. There are as few rounds as the
    budget allows; then the largest forward is made as small as so many rounds allow, so that ranks take about as long.
    """
    assert (sizes <= budget).all(), "a sample that fits into no forward"
    by_length = np.argsort(-sizes[:, 0], kind="stable")
    rounds = max(1, math.ceil(len(_stretches(sizes[by_length], *budget)) / ranks))
    # With less room there are never fewer stretches, so the least room that will do is found by bisection.
    rooms = range(int(sizes[:, 0].max(initial=0)), int(budget[0]) + 1)
    enough = bisect_left(
        rooms, True, key=lambda room: len(_stretches(sizes[by_length], room, budget[1])) <= rounds * ranks
    )
    rows = [by_length[stretch].tolist() for stretch in _stretches(sizes[by_length], rooms[enough], budget[1])]
    rows += [[] for _ in range(rounds * ranks - len(rows))]
    return _dealt(rows, lambda row: len(row) * sizes[row, 0].max(initial=0), ranks)


def _stretches(sizes: np.ndarray, tokens: float, images: float) -> list[slice]:
    """Each as long as `tokens`, padding included, and `images` allow; `sizes` from the longest sample down."""
    found, start = [], 0
    for end in range(1, len(sizes) + 1):
        held = sizes[start : end + 1]
        if end == len(sizes) or len(held) * held[0, 0] > tokens or held[:, 1].sum() > images:
            found.append(slice(start, end))
            start = end
    return found


def _filled(sizes: np.ndarray, budget: np.ndarray, count: int, emptiest_first: bool) -> list[list[int]] | None:
    """So many rows, or None where they have no room for a sample."""
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


def _dealt(rows: list[list[int]], cost: Callable[[list[int]], int], ranks: int) -> list[list[list[int]]]:
    """Rows of like cost form a round, at whose end ranks may wait for each other; the dearest goes to the first rank
    and the last one in turn. Within a row samples keep their order."""
    rows = sorted(map(sorted, rows), key=lambda row: -cost(row))
    rounds = [rows[start : start + ranks] for start in range(0, len(rows), ranks)]
    return [dealt[:: -1 if number % 2 else 1] for number, dealt in enumerate(rounds)]
