"""Find equal and nearly equal items, in nearly linear time and memory."""

from itertools import combinations

import numpy as np

DISTANCE = 3
"""Maximum differing bits, of 64, between similar images."""
SHARE = 6
"""And at most one in this many of the steps of either image: three of eight would be another drawing."""
LONGEST_RUN = 64
"""Candidates compared per table. If more images share half their bits, only the earliest are compared."""

_BLOCKS = ((0, 11), (11, 22), (22, 33), (33, 44), (44, 54), (54, 64))


def first_equal(digests: np.ndarray) -> np.ndarray:
    """uint64[n, 2] -> int64[n]: index of the first equal row, possibly the row itself."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal rows stay in order
    ordered = digests[order]
    begins = np.ones(len(digests), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(digests), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def find_equal(digests: np.ndarray, known: np.ndarray) -> np.ndarray:
    """uint64[n, 2], uint64[m, 2] -> int64[n]: the first equal row of `known`, or -1."""
    first = first_equal(np.concatenate([known, digests]))[len(known) :]
    return np.where(first < len(known), first, -1)


def find_near(hashes: np.ndarray, known: np.ndarray, before: np.ndarray) -> np.ndarray:
    """uint64[n, 2], uint64[m, 2], int64[n] -> int64[n]: the first similar row of `known[:before]`, or -1.

    Similar means both hashes differ by at most DISTANCE bits and by one in SHARE. Three differing bits leave at least
    three of six blocks unchanged, so similar hashes agree in one of the 20 choices of three blocks: about 32 bits,
    which few images share by chance (Manku et al. 2007, Detecting Near-Duplicates for Web Crawling).
    """
    found = np.full(len(hashes), len(known), np.int64)
    for blocks in combinations(_BLOCKS, len(_BLOCKS) - DISTANCE):
        mask = np.uint64(sum((1 << stop) - (1 << start) for start, stop in blocks))
        keys = known[:, 0] & mask
        order = np.argsort(keys, kind="stable")
        wanted, ordered = hashes[:, 0] & mask, keys[order]
        left = np.searchsorted(ordered, wanted, "left")
        right = np.minimum(np.searchsorted(ordered, wanted, "right"), left + LONGEST_RUN)
        active = np.flatnonzero(left < right)
        while len(active):
            candidates = order[left[active]]
            left_hash, right_hash = hashes[active], known[candidates]
            differing, steps = np.bitwise_count(left_hash ^ right_hash), np.bitwise_count(left_hash | right_hash)
            near = (differing <= DISTANCE) & (differing * SHARE <= steps)
            alike = near.all(axis=1) & (candidates < before[active])
            found[active[alike]] = np.minimum(found[active[alike]], candidates[alike])
            left[active] += 1
            active = active[left[active] < right[active]]
    return np.where(found < len(known), found, -1)
