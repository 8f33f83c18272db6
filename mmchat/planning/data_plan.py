"""What each source contributes, and the sizes of its samples: from texts, labels and, if the number of views depends on
image sizes, from image headers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmchat.data.lengths import COLUMNS, LengthIndex, source_lengths, source_measure, why_unusable
from mmchat.data.mixture import Mixture, MixtureSource
from mmchat.data.records import Record, Rejected
from mmchat.errors import UserError
from mmchat.training.objectives.assistant import AssistantObjective
from mmchat.training.objectives.base import Objective


@dataclass(frozen=True)
class SourcePlan:
    """One source.

    Attributes:
        records: records read.
        unusable: how many of them cannot be used.
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


def plan_sources(mixture: Mixture, objective: Objective, max_length: int) -> tuple[list[SourcePlan], LengthIndex]:
    """The sources in order, and the sizes of all samples of the mixture by number."""
    plans, lengths = [], []
    for source, count in zip(mixture.sources, mixture.plan.counts, strict=True):
        plan, of_source = _plan_source(source, count, objective, max_length)
        plans.append(plan)
        lengths.append(of_source)
    columns = zip(*(one.columns for one in lengths), strict=True)
    return plans, LengthIndex(*(np.concatenate(column).astype(np.int64) for column in columns))


def _plan_source(
    source: MixtureSource, count: int, objective: Objective, max_length: int
) -> tuple[SourcePlan, LengthIndex]:
    if isinstance(objective, AssistantObjective):
        measure = source_measure(source, objective.processor, max_length)
        try:
            lengths = source_lengths(source, measure)
        except UserError:  # no record can be used; `first` says why
            lengths = LengthIndex(*np.zeros((COLUMNS, len(source)), np.int64))
    else:
        measure = objective.sample_sizes
        lengths = LengthIndex(*np.array([_measured(measure, source.record(i)) for i in range(len(source))]).T)
    records = _records_read(source)
    refused = np.flatnonzero(lengths.tokens == 0)
    first = None
    if (rejected := _first_rejected(source)) is not None:
        first = source.source[rejected].reason
    elif len(refused):
        first = why_unusable(measure, source.record(int(refused[0])))
    columns = (lengths.tokens, lengths.supervised, lengths.images, lengths.views)
    sums = (int(column.sum(dtype=np.int64)) for column in columns)
    return SourcePlan(source.name, records, records - len(source) + len(refused), first, *sums, count), lengths


def _records_read(source: MixtureSource) -> int:
    """All records, unless a clean index names those to use or `max_samples` ends the search."""
    if source.config.index is not None:
        return len(source)
    return len(source.source) if source.config.max_samples is None else int(source.usable[-1]) + 1


def _first_rejected(source: MixtureSource) -> int | None:
    if source.config.index is not None or _records_read(source) == len(source):
        return None
    gaps = np.flatnonzero(source.usable != np.arange(len(source)))
    return int(gaps[0]) if len(gaps) else len(source)


def _measured(measure: Callable, record: Record | Rejected) -> tuple[int, ...]:
    try:
        return (0,) * COLUMNS if isinstance(record, Rejected) else measure(record)
    except UserError:
        return (0,) * COLUMNS
