"""What each source contributes, and the sizes of its samples: from texts, labels and, if the number of views depends on
image sizes, from image headers."""

from dataclasses import dataclass

import numpy as np

from mmchat.data.lengths import COLUMNS, LengthIndex, why_unusable
from mmchat.data.mixture import Mixture, MixtureSource
from mmchat.data.records import Rejected
from mmchat.errors import UserError
from mmchat.training.objectives.base import Objective


@dataclass(frozen=True)
class SourcePlan:
    """One source.

    Attributes:
        records: records read.
        unusable: how many of them cannot be used. Images that were never downloaded are not counted.
        first: why the first of those cannot be used.
        tokens, supervised, images, views: sums over usable records, each counted once.
        per_epoch: samples in one epoch.
    """

    name: str
    records: int
    unusable: int
    first: str | None
    tokens: int
    supervised: int
    images: int
    views: int
    per_epoch: int


def plan_sources(mixture: Mixture, objective: Objective) -> tuple[list[SourcePlan], LengthIndex]:
    """The sources in order, and the sizes of all samples of the mixture by number."""
    plans, lengths = [], []
    for source, count in zip(mixture.sources, mixture.plan.counts, strict=True):
        plan, of_source = _plan_source(source, count, objective, mixture.max_length)
        plans.append(plan)
        lengths.append(of_source)
    columns = zip(*(one.columns for one in lengths), strict=True)
    return plans, LengthIndex(*(np.concatenate(column).astype(np.int64) for column in columns))


def _plan_source(
    source: MixtureSource, count: int, objective: Objective, max_length: int
) -> tuple[SourcePlan, LengthIndex]:
    try:
        lengths = objective.lengths(source, max_length)
    except UserError:  # no record can be used; `first` says why
        lengths = LengthIndex(*np.zeros((COLUMNS, len(source)), np.int64))
    records = _records_read(source)
    refused = np.flatnonzero(lengths.tokens == 0)
    faulty = _faulty(source, records)
    first = faulty[0].reason if faulty else None
    if first is None and len(refused):
        first = why_unusable(objective.measure(source, max_length), source.record(int(refused[0])))
    plan = SourcePlan(
        source.name,
        records,
        unusable=len(faulty) + len(refused),
        first=first,
        tokens=_total(lengths.tokens),
        supervised=_total(lengths.supervised),
        images=_total(lengths.images),
        views=_total(lengths.views),
        per_epoch=count,
    )
    return plan, lengths


def _total(column: np.ndarray) -> int:
    return int(column.sum(dtype=np.int64))


def _records_read(source: MixtureSource) -> int:
    """All records, unless a clean index names those to use or `max_samples` ends the search."""
    if source.config.index is not None:
        return len(source)
    return len(source.source) if source.config.max_samples is None else int(source.usable[-1]) + 1


def _faulty(source: MixtureSource, records: int) -> list[Rejected]:
    """The records that would stop a run when it opens its data."""
    if source.config.index is not None:
        return []
    missing = np.setdiff1d(np.arange(records), source.usable)
    read = (source.source[number] for number in missing.tolist())
    return [record for record in read if isinstance(record, Rejected) and not record.left_out]
