"""Samples of similar length padded together, for language models that do not support packing."""

import math
from bisect import bisect_left

import numpy as np

from mmchat.data.packing import assign_to_ranks


def group_by_length(sizes: np.ndarray, budget: np.ndarray, ranks: int) -> list[list[list[int]]]:
    """Distribute samples over padded forwards. Arguments and result as in `packing.pack`.

    A forward uses (number of samples) x (longest sample) of the token budget. Samples are sorted by length and cut into
    forwards, which wastes least. There are as few rounds as the budget allows; within these, the largest forward is as
    small as possible, so that ranks take about as long.
    """
    assert (sizes <= budget).all(), "a sample does not fit into a forward"
    by_length = np.argsort(-sizes[:, 0], kind="stable")
    rounds = max(1, math.ceil(len(_cut_by_length(sizes[by_length], *budget)) / ranks))
    # Less room never gives fewer forwards, so bisection finds the least room that suffices.
    rooms = range(int(sizes[:, 0].max(initial=0)), int(budget[0]) + 1)
    enough = bisect_left(
        rooms, True, key=lambda room: len(_cut_by_length(sizes[by_length], room, budget[1])) <= rounds * ranks
    )
    rows = [by_length[forward].tolist() for forward in _cut_by_length(sizes[by_length], rooms[enough], budget[1])]
    rows += [[] for _ in range(rounds * ranks - len(rows))]
    return assign_to_ranks(rows, lambda row: len(row) * sizes[row, 0].max(initial=0), ranks)


def _cut_by_length(sizes: np.ndarray, tokens: float, images: float) -> list[slice]:
    """Slices of `sizes`, which is sorted longest first; each as long as `tokens` (with padding) and `images` allow."""
    found, start = [], 0
    for end in range(1, len(sizes) + 1):
        held = sizes[start : end + 1]
        if end == len(sizes) or len(held) * held[0, 0] > tokens or held[:, 1].sum() > images:
            found.append(slice(start, end))
            start = end
    return found
