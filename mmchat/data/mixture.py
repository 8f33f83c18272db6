"""A mixture: the usable records of several sources, numbered consecutively."""

from dataclasses import dataclass

import numpy as np
from rich.table import Table

from mmchat.data.clean_index import load_clean_index
from mmchat.data.config import DataConfig, SourceConfig
from mmchat.data.epoch_plan import EpochPlan, epoch_counts
from mmchat.data.exchange_kinds import KindsOfSource, keep_kinds
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Record, Rejected, prepared
from mmchat.data.sources import Source, open_source
from mmchat.errors import UserError
from mmchat.progress import progress_bar

PROGRESS_BAR_RECORDS = 20_000
"""Scanning a source with more records than this shows a progress bar."""


@dataclass(frozen=True)
class MixtureSource:
    """One source of a mixture.

    Attributes:
        usable: Numbers of its usable records, int64[n], ascending.
        every_caption: Whether a record with several captions is there once for each of them.
    """

    name: str
    source: Source
    usable: np.ndarray
    config: SourceConfig
    every_caption: bool = False

    def __len__(self) -> int:
        return len(self.usable)

    def record(self, number: int) -> Record | Rejected:
        """The `number`-th usable record, as the source's keys want it."""
        index = int(self.usable[number])
        record = self.source[index]
        if isinstance(record, Rejected):
            return record
        if self.every_caption and record.captions:
            record = record.with_caption(number - int(np.searchsorted(self.usable, index)))
        config = self.config
        if config.kinds or config.without_kinds:
            kept = keep_kinds(record, config.kinds, config.without_kinds)
            assert kept is not None  # `_usable` counts no other record
            record = kept
        return prepared(record, config.max_turns, config.image_place)


class Mixture:
    """All samples of a run by number, each of at most `max_length` tokens. `plan` says which of them form an epoch."""

    def __init__(self, sources: list[MixtureSource], max_length: int, epoch_samples: int | None = None) -> None:
        self.sources, self.max_length = sources, max_length
        sizes = [len(source) for source in sources]
        repeats, weights = [s.config.repeat for s in sources], [s.config.weight for s in sources]
        self.plan = EpochPlan(tuple(sizes), epoch_counts(sizes, repeats, weights, epoch_samples))
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def find(self, number: int) -> tuple[MixtureSource, Record | Rejected]:
        """Sample `number` of the mixture: its source and its record."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        source = self.sources[place]
        return source, source.record(number - int(self._ends[place]) + len(source))

    def table(self) -> Table:
        """The number of samples that one epoch takes from each source."""
        table = Table(title="one epoch", title_justify="left")
        table.add_column("source")
        for column in ("usable", "per epoch", "share", "times each"):
            table.add_column(column, justify="right")
        table.add_column("template")
        for source, count in zip(self.sources, self.plan.counts, strict=True):
            shares = (f"{100 * count / self.plan.samples:.1f} %", f"{count / len(source):.2f}")
            template = source.config.template or "the model's"
            table.add_row(source.name, f"{len(source):,}", f"{count:,}", *shares, template)
        return table


def open_mixture(
    config: DataConfig, quarantine: Quarantine, show_progress: bool = True, every_caption: bool = False
) -> Mixture:
    """Open every source and scan its records; `quarantine` receives the unusable ones.

    An evaluation uses every caption. Training draws one (`MixtureDataset`).

    Raises:
        UserError: A source has no usable record, or a record is unusable and the policy is "stop".
    """
    sources = []
    for name, settings in config.by_name().items():
        source = open_source(settings.path, settings.image_root, settings.allow_http)
        usable = _usable(source, settings, quarantine, show_progress)
        if not len(usable):
            raise UserError(
                f"{settings.path} holds no usable record (image root {source.image_root}); see {quarantine.path}"
            )
        if every_caption:
            usable = _once_per_caption(source, usable)
        sources.append(MixtureSource(name, source, usable, settings, every_caption))
    return Mixture(sources, config.max_length, config.epoch_samples)


def _once_per_caption(source: Source, usable: np.ndarray) -> np.ndarray:
    records = (source[number] for number in usable.tolist())
    counts = [len(record.captions) or 1 if isinstance(record, Record) else 1 for record in records]
    return np.repeat(usable, counts)


def _usable(source: Source, settings: SourceConfig, quarantine: Quarantine, show_progress: bool) -> np.ndarray:
    chosen = KindsOfSource(settings)
    if settings.index is None:
        numbers = range(len(source))
    else:
        clean = load_clean_index(settings.index, source)
        if not chosen.chooses:
            return clean[: settings.max_samples]
        numbers = clean.tolist()
    usable: list[int] = []
    show_progress = show_progress and len(source) > PROGRESS_BAR_RECORDS
    with progress_bar(f"reading {source.name}", len(numbers), enabled=show_progress) as bar:
        for index in numbers:
            record = source[index]
            if isinstance(record, Rejected):
                quarantine.add(record)
            elif chosen.keeps(record):
                usable.append(index)
            bar.advance()
            if len(usable) == settings.max_samples:
                return np.array(usable, np.int64)
    chosen.check(source.name)
    return np.array(usable, np.int64)
