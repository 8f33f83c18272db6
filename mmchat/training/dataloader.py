"""The data of a run: its mixture, split into optimizer steps and into the micro-batches of this rank."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, repeat

import torch
from torch.utils.data import DataLoader

from mmchat.data.collate import Batch
from mmchat.data.dataset import MixtureDataset
from mmchat.data.mixture import Mixture, open_mixture
from mmchat.data.order import BatchOrder
from mmchat.data.parallel import chunk_ranges
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Rejected
from mmchat.training.config import RunConfig
from mmchat.training.distributed import process_group
from mmchat.training.distributed.data_workers import start_data_worker
from mmchat.training.micro_batches import step_splitter
from mmchat.training.objectives.base import Objective


class TrainingDataLoader:
    """Training and held-out batches.

    Attributes:
        mixture: the training records.
        order: which samples a step takes.
        total: optimizer steps of the whole run.
        splitter: how a step's samples become micro-batches of this rank.

    Raises:
        UserError: data that cannot be used, or samples that cannot be split as the config says.
    """

    def __init__(self, config: RunConfig, objective: Objective, quarantine: Quarantine) -> None:
        self.config, self.objective = config, objective
        show_progress = process_group.rank() == 0
        self.mixture = open_mixture(config.data, quarantine, show_progress)
        self.order = batch_order(config, self.mixture)
        self.total = total_steps(config, self.order)
        self.splitter = step_splitter(config, self.mixture, objective)
        if config.validation:
            max_length = config.validation.max_length or config.data.max_length
            validation = replace(config.validation, max_length=max_length)
            self._held_out = open_mixture(validation, quarantine, show_progress, every_caption=True)
            self._held_out_splitter = step_splitter(config, self._held_out, objective)

    def steps(self, done: int) -> Iterator[tuple[int, list[Batch]]]:
        """Number (from 1) and micro-batches of every step after the first `done`."""
        steps = range(1) if self._repeats else range(done, self.total)
        planned = ((step, self.splitter(self.order.step(step))) for step in steps)
        micro_batches = self._load(self.mixture, planned)
        if self._repeats:
            micro_batches = repeat(next(micro_batches), self.total - done)
        return enumerate(micro_batches, done + 1)

    def samples(self) -> list[tuple[Mixture, Sequence[int]]]:
        """Numbers of all samples that this run ever uses, by mixture: the training's and the validation's."""
        training = [(self.mixture, self.order.taken(1 if self._repeats else self.total))]
        return training + ([(self._held_out, range(len(self._held_out)))] if self.config.validation else [])

    def held_out(self) -> Iterator[list[Batch]]:
        """One pass over the validation records, in file order, in chunks of `batch_size` samples.

        Every rank gets the same number of micro-batches per chunk; the last may be empty.
        """
        chunks = chunk_ranges(len(self._held_out), self.config.batch_size)
        return self._load(self._held_out, ((None, self._held_out_splitter(chunk)) for chunk in chunks))

    def _load(self, mixture: Mixture, planned: Iterable[tuple[int | None, list[list[int]]]]) -> Iterator[list[Batch]]:
        """Micro-batches of each (step, sample numbers by micro-batch); the step is None for held-out samples."""
        counts: deque[int] = deque()  # of the steps that the loader has begun: workers run ahead

        def sampler() -> Iterator[list[tuple[int, int | None]]]:
            for step, micro_batches in planned:
                counts.append(len(micro_batches))
                yield from ([(number, step) for number in numbers] for numbers in micro_batches)

        order = self.order if mixture is self.mixture else None
        batches = load_batches(mixture, self.objective, sampler(), self.config.workers, order)
        for first in batches:
            yield [first, *islice(batches, counts.popleft() - 1)]

    def ids(self, step: int, rejected: list[Rejected]) -> list[str]:
        """Ids of a step's samples in global order, without those that could not be used."""
        left_out = {item.where for item in rejected}
        numbers = self.order.step(0 if self._repeats else step - 1)
        records = (self.mixture.find(number)[1] for number in numbers)
        return [record.id for record in records if record.where not in left_out]

    @property
    def _repeats(self) -> bool:
        return self.config.overfit_one_batch


def batch_order(config: RunConfig, mixture: Mixture) -> BatchOrder:
    """Which samples of the mixture each step takes: a function of the seed, the batch size and the number of epochs."""
    total = None if config.epochs is None else round(mixture.plan.samples * config.epochs)
    return BatchOrder(mixture.plan, config.seed, config.batch_size, total)


def total_steps(config: RunConfig, order: BatchOrder) -> int:
    """Optimizer steps of the whole run."""
    steps = order.steps_in_total if config.steps is None else config.steps
    assert steps is not None  # the config gives exactly one of steps and epochs
    return steps


def load_batches(
    mixture: Mixture,
    objective: Objective,
    sampler: Iterable[Sequence[int | tuple[int, int | None]]],
    workers: int,
    order: BatchOrder | None = None,
) -> Iterator[Batch]:
    """Batches that are decoded, encoded and collated ahead of time in `workers` processes.

    Args:
        sampler: micro-batches of sample numbers, or of (sample number, step).
        order: the training's, from which the caption of a record that has several is drawn.
    """
    loader = DataLoader(
        MixtureDataset(
            mixture, objective.encode, objective.collator.square, objective.features, objective.augment, order
        ),
        batch_sampler=sampler,
        collate_fn=objective.collator,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: otherwise every pass draws a seed from the global one, which dropout depends on.
        generator=torch.Generator(),
        worker_init_fn=start_data_worker,
    )
    return iter(loader)
