"""Which samples form which step: a pure function of (seed, epoch, mixture).

The stream of samples is epoch after epoch, each in the order of its `EpochPlan`. Optimizer step `s` takes the
`batch_size` samples from position `s * batch_size` on, whatever the number of ranks or the size of a
micro-batch; so a checkpoint needs to remember only the step, and resume reads no skipped sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mmchat.data.mixture import EpochPlan


@dataclass(frozen=True)
class BatchOrder:
    """Cuts the stream into optimizer steps, micro-batches and ranks.

    total_samples: where the stream ends (samples x epochs), or None for a run bounded by steps; the last
    step of a run bounded by epochs may be smaller.
    """

    plan: EpochPlan
    seed: int
    batch_size: int
    total_samples: int | None = None

    @property
    def steps_in_total(self) -> int | None:
        return None if self.total_samples is None else -(-self.total_samples // self.batch_size)

    def epoch(self, step: int) -> float:
        """Epochs begun after `step` steps, as a fraction."""
        return step * self.batch_size / self.plan.samples

    def step(self, step: int) -> list[int]:
        """Numbers of the samples of one optimizer step."""
        start = step * self.batch_size
        end = start + self.batch_size
        if self.total_samples is not None:
            end = min(end, self.total_samples)
        size = self.plan.samples
        return [int(self.plan.order(self.seed, position // size)[position % size]) for position in range(start, end)]

    def micro_batches(self, step: int, micro_batch_size: int, rank: int, ranks: int) -> list[list[int]]:
        """This rank's micro-batches of one step; equally many on every rank, some perhaps empty at the end."""
        indices = self.step(step)
        per_round = micro_batch_size * ranks
        rounds = self.batch_size // per_round
        starts = [i * per_round + rank * micro_batch_size for i in range(rounds)]
        return [indices[start : start + micro_batch_size] for start in starts]


class MicroBatchSampler:
    """The batch sampler of a `DataLoader`: micro-batch after micro-batch from `first_step` to `last_step`."""

    def __init__(
        self, order: BatchOrder, micro_batch_size: int, rank: int, ranks: int, first_step: int, last_step: int
    ) -> None:
        self.order, self.micro_batch_size, self.rank, self.ranks = order, micro_batch_size, rank, ranks
        self.first_step, self.last_step = first_step, last_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.last_step):
            yield from self.order.micro_batches(step, self.micro_batch_size, self.rank, self.ranks)

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * (self.order.batch_size // (self.micro_batch_size * self.ranks))
