"""Several sources as one stream: how many samples of each an epoch holds, and which.

Samples are numbered consecutively over all sources. Numbers, counts and order depend only on the sizes of the sources
and the settings, so they are the same on every rank and after every restart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmchat.errors import UserError


@dataclass(frozen=True)
class EpochPlan:
    """How many samples an epoch takes from each source.

    Attributes:
        sizes: Samples in each source.
        counts: Samples that one epoch takes from each; a count above the size repeats samples.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Number of samples in one epoch."""
        return sum(self.counts)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """int64[samples]: the sample numbers of one epoch, in training order."""
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
    """int64[count]: the samples of a source that an epoch takes.

    The source is an endless sequence of shuffles, each with every sample once; every epoch takes the next `count`
    samples of it. So no sample repeats before all have been seen.
    """
    positions = epoch * count + np.arange(count)
    if count % size == 0:
        return positions % size  # whole rounds: the epoch is shuffled afterwards
    rounds = range(positions[0] // size, positions[-1] // size + 1)
    shuffles = [
        np.random.Generator(np.random.Philox(key=[seed, (source + 1 << 32) + r])).permutation(size) for r in rounds
    ]
    return np.concatenate(shuffles)[positions - rounds.start * size]


def epoch_counts(
    sizes: Sequence[int], repeats: Sequence[float], weights: Sequence[float | None], samples: int | None
) -> tuple[int, ...]:
    """Number of samples that one epoch takes from each source.

    Without weights a source contributes `size x repeat`, rounded. With weights the epoch holds `samples` (None: as many
    as without weights), divided in proportion to the weights by largest remainders, so that the sum is exact.

    Raises:
        UserError: Only some sources have weights, or `samples` is given without weights.
    """
    counts = [round(size * repeat) for size, repeat in zip(sizes, repeats, strict=True)]
    given_weights = [weight for weight in weights if weight is not None]
    if not given_weights:
        if samples is not None:
            raise UserError("epoch_samples is divided by weight; give every source a weight")
        return tuple(counts)
    if len(given_weights) < len(weights):
        raise UserError("some sources have a weight and some have none; give every source a weight, or none")
    total = sum(counts) if samples is None else samples
    exact = [total * weight / sum(given_weights) for weight in given_weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for number in by_remainder[: total - sum(shares)]:
        shares[number] += 1
    return tuple(shares)
