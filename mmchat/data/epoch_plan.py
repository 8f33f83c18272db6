"""Several sources as one stream of samples: how many of each an epoch holds, and which.

A sample's number counts through all sources, one behind the other. Numbers, counts and order depend on nothing
but the sizes of the sources and the settings, so they are the same on every rank and after every restart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmchat.errors import UserError


@dataclass(frozen=True)
class EpochPlan:
    """sizes: samples in each source. counts: how many of them one epoch takes (more than there are repeats)."""

    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Samples of one epoch."""
        return sum(self.counts)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """int64[samples]: the sample numbers of one epoch, in the order of training."""
        return _order(self, seed, epoch)


@lru_cache(maxsize=2)
def _order(plan: EpochPlan, seed: int, epoch: int) -> np.ndarray:
    offsets = np.cumsum([0, *plan.sizes[:-1]])
    chosen = [
        offset + _choice(number, size, count, seed, epoch)
        for number, (offset, size, count) in enumerate(zip(offsets, plan.sizes, plan.counts, strict=True))
    ]
    # Philox is specified bit for bit, so the order is the same on every machine.
    return np.concatenate(chosen)[np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(plan.samples)]


def _choice(source: int, size: int, count: int, seed: int, epoch: int) -> np.ndarray:
    """int64[count]: which samples of a source an epoch takes.

    They are a stretch of an endless row of shuffles, each holding every sample once; epoch after epoch takes
    the next stretch. So no sample comes a second time before all have come a first time.
    """
    positions = epoch * count + np.arange(count)
    if count % size == 0:
        return positions % size  # whole rounds: the order within the epoch is shuffled anyway
    rounds = range(positions[0] // size, positions[-1] // size + 1)
    shuffles = [
        np.random.Generator(np.random.Philox(key=[seed, (source + 1 << 32) + r])).permutation(size) for r in rounds
    ]
    return np.concatenate(shuffles)[positions - rounds.start * size]


def epoch_counts(
    sizes: Sequence[int], repeats: Sequence[float], weights: Sequence[float | None], samples: int | None
) -> tuple[int, ...]:
    """Exact samples per source and epoch.

    Without weights a source gives `size x repeat`, rounded. With weights the epoch holds `samples` (None: as many
    as without weights), shared out in proportion to them by largest remainders, so that the sum is exact.

    Raises:
        UserError: only some sources have weights, or `samples` is given without weights.
    """
    counts = [round(size * repeat) for size, repeat in zip(sizes, repeats, strict=True)]
    given = [weight for weight in weights if weight is not None]
    if not given:
        if samples is not None:
            raise UserError("epoch_samples is shared out by weight; give every source a weight")
        return tuple(counts)
    if len(given) < len(weights):
        raise UserError("either every source has a weight or none; the others could only be guessed")
    total = sum(counts) if samples is None else samples
    exact = [total * weight / sum(given) for weight in given]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for number in by_remainder[: total - sum(shares)]:
        shares[number] += 1
    return tuple(shares)
