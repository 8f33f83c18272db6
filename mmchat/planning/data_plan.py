"""What each source gives to learn from, and how long its samples are: known from texts, and from
images' headers where tiles hang on their sizes."""

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
    """One source. records: that were looked at; unusable: of these; first: why the first of them cannot be used.

    supervised, tokens, images, views: of all its usable records, each once. per_epoch: samples of it in one epoch.
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


def look_at_sources(mixture: Mixture, objective: Objective, max_length: int) -> tuple[list[SourcePlan], LengthIndex]:
    """Sources in their order, and the lengths of all samples of the mixture by number."""
    plans, lengths = [], []
    for part, count in zip(mixture.sources, mixture.plan.counts, strict=True):
        plan, of_part = _look_at(part, count, objective, max_length)
        plans.append(plan)
        lengths.append(of_part)
    columns = zip(*(one.columns for one in lengths), strict=True)
    return plans, LengthIndex(*(np.concatenate(column).astype(np.int64) for column in columns))


def _look_at(part: MixtureSource, count: int, objective: Objective, max_length: int) -> tuple[SourcePlan, LengthIndex]:
    if isinstance(objective, AssistantObjective):
        measure = source_measure(part, objective.processor, max_length)
        try:
            lengths = source_lengths(part, measure)
        except UserError:  # not one of them can be used; the first tells why
            lengths = LengthIndex(*np.zeros((COLUMNS, len(part)), np.int64))
    else:
        measure = _caption_measure(objective)
        lengths = LengthIndex(*np.array([_measured(measure, part.record(i)) for i in range(len(part))]).T)
    records = _looked_at(part)
    refused = np.flatnonzero(lengths.tokens == 0)
    first = None
    if (rejected := _first_rejected(part)) is not None:
        first = part.source[rejected].reason
    elif len(refused):
        first = why_unusable(measure, part.record(int(refused[0])))
    columns = (lengths.tokens, lengths.supervised, lengths.images, lengths.views)
    sums = (int(column.sum(dtype=np.int64)) for column in columns)
    return SourcePlan(part.name, records, records - len(part) + len(refused), first, *sums, count), lengths


def _looked_at(part: MixtureSource) -> int:
    """A clean index names the records to use, and `max_samples` ends the search; else all of them were looked at."""
    if part.config.index is not None:
        return len(part)
    return len(part.source) if part.config.max_samples is None else int(part.usable[-1]) + 1


def _first_rejected(part: MixtureSource) -> int | None:
    if part.config.index is not None or _looked_at(part) == len(part):
        return None
    gaps = np.flatnonzero(part.usable != np.arange(len(part)))
    return int(gaps[0]) if len(gaps) else len(part)


def _caption_measure(objective: Objective) -> Callable[[Record], tuple[int, ...]]:
    return lambda record: (len(objective.caption_ids(record)[0]), 0, 1, 1, objective.spec.tokens)


def _measured(measure: Callable, record: Record | Rejected) -> tuple[int, ...]:
    try:
        return (0,) * COLUMNS if isinstance(record, Rejected) else measure(record)
    except UserError:
        return (0,) * COLUMNS
