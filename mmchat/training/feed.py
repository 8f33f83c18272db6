"""What a run feeds on: its mixture, cut into optimizer steps, micro-batches and this rank's share of them."""

from collections.abc import Iterable, Iterator
from itertools import repeat

import torch
from torch.utils.data import DataLoader

from mmchat.data.collate import Batch
from mmchat.data.dataset import Mixture, MixtureDataset, open_mixture
from mmchat.data.order import BatchOrder, MicroBatchSampler
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Rejected
from mmchat.training import distributed
from mmchat.training.config import RunConfig
from mmchat.training.engine import accumulation
from mmchat.training.interruption import ignore_stop_signals
from mmchat.training.objectives import Objective


class Feed:
    """total: optimizer steps of the whole run. micro, rounds: samples and number of this rank's micro-batches in each.

    Raises:
        UserError: data that cannot be used, or a batch that cannot be shared out evenly.
    """

    def __init__(self, config: RunConfig, objective: Objective, quarantine: Quarantine) -> None:
        self.config, self.objective = config, objective
        shows = distributed.rank() == 0
        self.mixture = open_mixture(config.data, quarantine, show_progress=shows)
        self.order = batch_order(config, self.mixture)
        self.total = config.steps or self.order.steps_in_total
        self.micro, self.rounds = accumulation(config, distributed.ranks())
        self._held_out = config.validation and open_mixture(config.validation, quarantine, show_progress=shows)

    def steps(self, done: int) -> Iterator[tuple[int, list[Batch]]]:
        """Number (from 1) and micro-batches of every step after the first `done`."""
        first, last = (0, 1) if self._repeats else (done, self.total)
        sampler = MicroBatchSampler(self.order, self.micro, distributed.rank(), distributed.ranks(), first, last)
        groups = _grouped(load_batches(self.mixture, self.objective, sampler, self.config.workers), self.rounds)
        return enumerate(repeat(next(groups), self.total - done) if self._repeats else groups, done + 1)

    def held_out(self) -> Iterator[Batch]:
        """One pass over the validation records, in file order; equally many batches on every rank, the last perhaps
        empty."""
        ranks, rank = distributed.ranks(), distributed.rank()
        rounds = -(-len(self._held_out) // (self.micro * ranks))
        starts = [(i * ranks + rank) * self.micro for i in range(rounds)]
        lists = [list(range(start, min(start + self.micro, len(self._held_out)))) for start in starts]
        return load_batches(self._held_out, self.objective, lists, self.config.workers)

    def ids(self, step: int, rejected: list[Rejected]) -> list[str]:
        """Ids of the step's samples in global order, without those that could not be used."""
        left_out = {item.where for item in rejected}
        numbers = self.order.step(0 if self._repeats else step - 1)
        records = (self.mixture.find(number)[1] for number in numbers)
        return [record.id for record in records if record.where not in left_out]

    @property
    def _repeats(self) -> bool:
        return self.config.overfit_one_batch


def batch_order(config: RunConfig, mixture: Mixture) -> BatchOrder:
    total = None if config.epochs is None else round(mixture.plan.samples * config.epochs)
    return BatchOrder(mixture.plan, config.seed, config.batch_size, total)


def load_batches(mixture: Mixture, objective: Objective, sampler: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    """Decoded, encoded and collated in `workers` processes, ahead of whoever iterates."""
    loader = DataLoader(
        MixtureDataset(mixture, objective.encode),
        batch_sampler=sampler,
        collate_fn=objective.collator,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: without it every pass draws a seed from the global one, on which dropout hangs.
        generator=torch.Generator(),
        worker_init_fn=ignore_stop_signals,
    )
    return iter(loader)


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """The micro-batches of one optimizer step at a time."""
    while group := [batch for _, batch in zip(range(size), batches, strict=False)]:
        yield group
