"""How a run's samples become steps and micro-batches, through the run's own order and splitting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmchat.data.lengths import LengthIndex
from mmchat.data.order import BatchOrder
from mmchat.training.micro_batches import StepSplitter

MOST_STEPS = 2_000
"""Of a longer run, this many evenly spaced steps are planned."""


@dataclass(frozen=True)
class PlannedMicroBatch:
    """One forward of one rank.

    Attributes:
        step: from 1.
        samples: numbers in the mixture.
        lengths: their tokens.
        positions: tokens and padding. An empty micro-batch has one position of padding, as in `data.collate`.
        images, views, patches, supervised: sums over the samples.
    """

    step: int
    rank: int
    samples: list[int]
    lengths: list[int]
    positions: int
    images: int
    views: int
    patches: int
    supervised: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Spread:
    """Median and maximum of a figure of one rank's part of a step, over all planned steps and ranks."""

    median: float
    most: int


@dataclass(frozen=True)
class StepsPlan:
    """Steps, packed or padded.

    Attributes:
        as_configured: False for the alternative to the config.
        split: how a step is split into micro-batches, as text.
        fill: share of positions that are tokens.
        forwards: micro-batches of a rank in one step.
    """

    packed: bool
    as_configured: bool
    split: str
    fill: float
    supervised_share: float
    forwards: Spread
    tokens: Spread
    images: Spread
    patches: Spread


@dataclass(frozen=True)
class StepRow:
    """One step of all ranks together, with the field names of metrics.jsonl."""

    step: int
    tokens: int
    positions: int
    images: int
    terms: int


def steps_to_plan(total: int, repeats: bool) -> list[int]:
    """Step numbers, from 0.

    Args:
        repeats: all steps repeat the first one (`overfit_one_batch`).
    """
    if repeats:
        return [0]
    return np.unique(np.linspace(0, total - 1, min(total, MOST_STEPS)).round().astype(np.int64)).tolist()


def plan_micro_batches(
    splitter: StepSplitter, packed: bool, order: BatchOrder, steps: Sequence[int], lengths: LengthIndex
) -> list[PlannedMicroBatch]:
    """The micro-batches of these steps on every rank, without samples that cannot be used."""
    found = []
    for step in steps:
        for by_rank in splitter.rounds(order.step(step)):
            for rank, numbers in enumerate(by_rank):
                found.append(_micro_batch(step + 1, rank, [n for n in numbers if lengths.tokens[n]], packed, lengths))
    return found


def _micro_batch(step: int, rank: int, samples: list[int], packed: bool, lengths: LengthIndex) -> PlannedMicroBatch:
    tokens = lengths.tokens[samples].tolist()
    positions = max(1, sum(tokens) if packed else len(tokens) * max(tokens, default=0))
    columns = (lengths.images, lengths.views, lengths.patches, lengths.supervised)
    sums = (int(column[samples].sum()) for column in columns)
    return PlannedMicroBatch(step, rank, samples, tokens, positions, *sums)


def summarise_steps(batches: list[PlannedMicroBatch], packed: bool, as_configured: bool, split: str) -> StepsPlan:
    """Sum up the micro-batches of all planned steps."""
    by_rank: dict[tuple[int, int], list[PlannedMicroBatch]] = {}
    for batch in batches:
        by_rank.setdefault((batch.step, batch.rank), []).append(batch)

    def spread(name: str) -> Spread:
        return _spread([sum(getattr(batch, name) for batch in part) for part in by_rank.values()])

    tokens = sum(batch.tokens for batch in batches)
    return StepsPlan(
        packed,
        as_configured,
        split,
        fill=tokens / sum(batch.positions for batch in batches),
        supervised_share=sum(batch.supervised for batch in batches) / max(1, tokens),
        forwards=_spread([len(part) for part in by_rank.values()]),
        tokens=spread("tokens"),
        images=spread("images"),
        patches=spread("patches"),
    )


def _spread(values: list[int]) -> Spread:
    return Spread(float(np.median(values)), int(max(values)))


def step_rows(batches: list[PlannedMicroBatch], terms: Callable[[PlannedMicroBatch], int]) -> list[StepRow]:
    """One row per step.

    Args:
        terms: number of losses of a micro-batch.
    """
    rows: dict[int, np.ndarray] = {}
    for batch in batches:
        row = rows.setdefault(batch.step, np.zeros(4, np.int64))
        row += (batch.tokens, batch.positions, batch.images, terms(batch))
    return [StepRow(step, *row.tolist()) for step, row in rows.items()]


def largest_micro_batches(batches: list[PlannedMicroBatch]) -> list[PlannedMicroBatch]:
    """Candidates for the most memory: the one with most positions, and the one with most views."""
    positions = max(batches, key=lambda batch: (batch.positions, batch.views))
    views = max(batches, key=lambda batch: (batch.views, batch.positions))
    return [positions] if positions.views == views.views else [positions, views]
