"""Which samples form which optimizer step: a pure function of (seed, epoch, mixture).

The stream of samples is the epochs in sequence, each in the order of its `EpochPlan`. Optimizer step `s` takes the
`batch_size` samples at position `s * batch_size`, for any number of ranks and any micro-batch size. A checkpoint
therefore stores only the step, and a resumed run reads no sample that it skips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmchat.data.epoch_plan import EpochPlan
from mmchat.errors import UserError


@dataclass(frozen=True)
class BatchOrder:
    """Cuts the stream into optimizer steps.

    Attributes:
        plan: The samples of an epoch.
        seed: Seed of the shuffles.
        batch_size: Samples per optimizer step.
        total_samples: Length of the stream (samples x epochs), or None for a run bounded by steps. The last step of a
            run bounded by epochs may be smaller.
    """

    plan: EpochPlan
    seed: int
    batch_size: int
    total_samples: int | None = None

    @property
    def steps_in_total(self) -> int | None:
        return None if self.total_samples is None else -(-self.total_samples // self.batch_size)

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` steps, as a fraction."""
        return step * self.batch_size / self.plan.samples

    def step(self, step: int) -> list[int]:
        """Sample numbers of one optimizer step."""
        start, end = step * self.batch_size, self._end(step + 1)
        size = self.plan.samples
        return [int(self.plan.order(self.seed, position // size)[position % size]) for position in range(start, end)]

    def epoch_of(self, step: int, number: int) -> int:
        """The epoch to which a sample of a step belongs; the first of them if the step has it from two."""
        size, start = self.plan.samples, step * self.batch_size
        first = start // size
        if first == (self._end(step + 1) - 1) // size:
            return first
        return (start + self.step(step).index(number)) // size

    def taken(self, steps: int) -> np.ndarray:
        """int64: distinct sample numbers of the first `steps` steps, ascending."""
        end, size = self._end(steps), self.plan.samples
        epochs = [self.plan.order(self.seed, start // size)[: end - start] for start in range(0, end, size)]
        return np.unique(np.concatenate(epochs))

    def _end(self, steps: int) -> int:
        """Position in the stream after `steps` steps."""
        end = steps * self.batch_size
        return end if self.total_samples is None else min(end, self.total_samples)


def split_batch(batch_size: int, micro_batch_size: int | None, ranks: int) -> tuple[int, int]:
    """Micro-batch size and gradient accumulation steps of each rank.

    Args:
        micro_batch_size: None puts all samples of a rank into one micro-batch.

    Raises:
        UserError: the batch cannot be split into equal micro-batches.
    """
    micro = micro_batch_size or batch_size // ranks
    if not micro or batch_size % (micro * ranks):
        raise UserError(
            f"batch_size {batch_size} is not a multiple of micro_batch_size {micro} x {ranks} ranks; "
            "every rank needs the same number of micro-batches"
        )
    return micro, batch_size // (micro * ranks)


def split_micro_batches(numbers: Sequence[int], size: int, rank: int, ranks: int) -> list[list[int]]:
    """This rank's micro-batches of `size` samples. All ranks get the same number; the last may be smaller or empty."""
    per_round = size * ranks
    starts = range(rank * size, -(-len(numbers) // per_round) * per_round, per_round)
    return [list(numbers[start : start + size]) for start in starts]
