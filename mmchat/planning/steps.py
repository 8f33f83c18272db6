"""How a run's samples become steps, from the length index and through the run's own order and sharing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmchat.data.lengths import LengthIndex
from mmchat.data.order import BatchOrder
from mmchat.training.micro_batches import StepSplitter

MOST_STEPS = 2_000
"""Of a longer run so many steps are looked at, evenly spread."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward of one rank. step: from 1. samples: numbers in the mixture. lengths: their tokens.

    positions: tokens and padding. An empty one has a single position of padding, as `data.collate` makes it.
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
    """Of one rank's part of a step, over all steps looked at and all ranks."""

    median: float
    most: int


@dataclass(frozen=True)
class StepsPlan:
    """How steps are made in one of two ways. fill: tokens of all positions. forwards: of a rank in one step."""

    packed: bool
    as_configured: bool
    how: str
    fill: float
    supervised_share: float
    forwards: Spread
    tokens: Spread
    images: Spread
    patches: Spread


@dataclass(frozen=True)
class StepRow:
    """One step, all ranks together, by the names of metrics.jsonl."""

    step: int
    tokens: int
    positions: int
    images: int
    terms: int


def steps_to_look_at(total: int, repeats: bool) -> list[int]:
    """Numbers from 0. repeats: all steps are the first again."""
    if repeats:
        return [0]
    return np.unique(np.linspace(0, total - 1, min(total, MOST_STEPS)).round().astype(np.int64)).tolist()


def micro_batches(
    sharing: StepSplitter, packed: bool, order: BatchOrder, steps: Sequence[int], lengths: LengthIndex
) -> list[MicroBatch]:
    """Of these steps, on every rank. Samples that cannot be used are missing, as they will be."""
    found = []
    for step in steps:
        for by_rank in sharing.rounds(order.step(step)):
            for rank, numbers in enumerate(by_rank):
                found.append(_micro_batch(step + 1, rank, [n for n in numbers if lengths.tokens[n]], packed, lengths))
    return found


def _micro_batch(step: int, rank: int, samples: list[int], packed: bool, lengths: LengthIndex) -> MicroBatch:
    tokens = lengths.tokens[samples].tolist()
    positions = max(1, sum(tokens) if packed else len(tokens) * max(tokens, default=0))
    columns = (lengths.images, lengths.views, lengths.patches, lengths.supervised)
    sums = (int(column[samples].sum()) for column in columns)
    return MicroBatch(step, rank, samples, tokens, positions, *sums)


def summed_up(batches: list[MicroBatch], packed: bool, as_configured: bool, how: str) -> StepsPlan:
    by_rank: dict[tuple[int, int], list[MicroBatch]] = {}
    for batch in batches:
        by_rank.setdefault((batch.step, batch.rank), []).append(batch)

    def spread(name: str) -> Spread:
        return _spread([sum(getattr(batch, name) for batch in part) for part in by_rank.values()])

    tokens = sum(batch.tokens for batch in batches)
    return StepsPlan(
        packed,
        as_configured,
        how,
        fill=tokens / sum(batch.positions for batch in batches),
        supervised_share=sum(batch.supervised for batch in batches) / max(1, tokens),
        forwards=_spread([len(part) for part in by_rank.values()]),
        tokens=spread("tokens"),
        images=spread("images"),
        patches=spread("patches"),
    )


def _spread(values: list[int]) -> Spread:
    return Spread(float(np.median(values)), int(max(values)))


def by_step(batches: list[MicroBatch], contrastive: bool) -> list[StepRow]:
    rows: dict[int, np.ndarray] = {}
    for batch in batches:
        terms = batch.images if contrastive else batch.supervised
        row = rows.setdefault(batch.step, np.zeros(4, np.int64))
        row += (batch.tokens, batch.positions, batch.images, terms)
    return [StepRow(step, *row.tolist()) for step, row in rows.items()]


def fullest(batches: list[MicroBatch]) -> list[MicroBatch]:
    """Those that may need most memory: most positions, and most views of images."""
    positions = max(batches, key=lambda batch: (batch.positions, batch.views))
    views = max(batches, key=lambda batch: (batch.views, batch.positions))
    return [positions] if positions.views == views.views else [positions, views]
