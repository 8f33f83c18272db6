"""The pass over all records: in parallel, chunk by chunk, each chunk's outcome on the disk before the next one.

A pass that was killed goes on with the chunks that are missing, if data and settings are still the same; a pass that
came to its end leaves no partial results, so that the next one sees the images that were mended meanwhile.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmchat.data.clean_index import save_clean_index
from mmchat.data.config import DataConfig, SourceConfig
from mmchat.data.doctor.inputs import CheckedSource, open_checked_source
from mmchat.data.doctor.outputs import Gatherer, Tally, flat_counts, locate
from mmchat.data.doctor.overlap import Relations
from mmchat.data.doctor.partial_results import PartialResults, RecordStats
from mmchat.data.lengths import LengthMeasure
from mmchat.data.parallel import map_chunks
from mmchat.errors import UserError
from mmchat.files import atomic_file, write_json

CHUNK = 500
"""Records that a killed pass does twice, at most, per process."""
FORMAT = 1
"""Raised when what is found changes: results of older passes are then made anew."""


@dataclass(frozen=True)
class CheckRequest:
    """What is asked of a pass.

    against: evaluation sets. processor: the model's, None where no model was named. workers: processes, None decides.
    examples: findings of each kind that the report shows.
    """

    data: DataConfig
    out: Path
    against: tuple[SourceConfig, ...] = ()
    processor: Any = None
    workers: int | None = None
    examples: int = 6


@dataclass(frozen=True)
class CheckResult:
    """What the reports are made of.

    stats, clean: one per source, in their order. seconds: this start took. known: records that an earlier start,
    which was stopped, had checked.
    """

    request: CheckRequest
    sources: list[CheckedSource]
    held_out: list[CheckedSource]
    unread: int
    stats: list[RecordStats]
    clean: list[Path]
    counts: dict[str, int]
    tally: Tally
    partial: PartialResults
    seconds: float
    known: int

    @property
    def sound(self) -> bool:
        return not self.tally.erroneous


def check(request: CheckRequest) -> CheckResult:
    """Examine everything, write everything into `request.out` but the reports.

    Raises:
        UserError: a source cannot be opened, or `out` cannot be written.
    """
    begun = time.perf_counter()
    data, out = request.data, request.out
    sources = [
        open_checked_source(name, config, request.processor, data.max_length) for name, config in data.by_name().items()
    ]
    held_out = [open_checked_source(config.path, config) for config in request.against]
    for source in sources:
        if out.resolve() == Path(source.config.path).resolve():
            raise UserError(f"{out} is the data's own place; name another --out")
    with explain_write_errors(out):
        partial = PartialResults(out / "parts", _key(sources + held_out, request))
    known = _examine(sources + held_out, partial, request.workers)
    stats = [partial.stats(number, _starts(source)) for number, source in enumerate(sources)]
    other, unread = _held_out_stats(held_out, len(sources), partial)
    clean = [clean_path(out, sources, number) for number in range(len(sources))]
    kept = []
    with (
        explain_write_errors(out),
        atomic_file(out / "quarantine.jsonl") as errors,
        atomic_file(out / "warnings.jsonl") as warnings,
    ):
        gatherer = Gatherer(errors, warnings, held_out, request.examples)
        for number, (source, own) in enumerate(zip(sources, stats, strict=True)):
            relations = Relations(own, other)
            gatherer.add(source, number, _starts(source), partial, relations)
            kept.append(_keep(clean[number], source, relations))
    counts = flat_counts(gatherer.tally, sources, kept)
    with explain_write_errors(out):
        write_json(out / "findings.json", counts)
    seconds = time.perf_counter() - begun
    return CheckResult(
        request, sources, held_out, unread, stats, clean, counts, gatherer.tally, partial, seconds, known
    )


def clean_path(out: Path, sources: list[CheckedSource], number: int) -> Path:
    if len(sources) == 1:
        return out / "clean.npz"
    return out / f"clean.{number + 1}.{file_name(sources[number].name)}.npz"


def file_name(name: str) -> str:
    """`name` as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "data"


@contextlib.contextmanager
def explain_write_errors(out: Path) -> Iterator[None]:
    """A full disk, or a folder that may not be written, as a sentence."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise UserError(f"{out} cannot be written: {what}; mend that and start again, the pass goes on") from None


@dataclass(frozen=True)
class _Work:
    sources: list[CheckedSource]
    partial: PartialResults

    def __call__(self, chunk: range) -> None:
        number, start = locate(self.sources, chunk.start)
        source = self.sources[number]
        checked = []
        for place in range(start, start + len(chunk)):
            try:
                checked.append(source.checker(source.record(place)))
            except Exception as error:
                error.add_note(f"while examining record {place} of {source.name}")
                raise
        with explain_write_errors(self.partial.directory):
            self.partial.save(number, start, checked)


def _examine(sources: list[CheckedSource], partial: PartialResults, workers: int | None) -> int:
    """Does what is missing; returns how many records were there."""
    missing, known, offset = [], 0, 0
    for number, source in enumerate(sources):
        for start in _starts(source):
            size = min(CHUNK, len(source) - start)
            if partial.has(number, start):
                known += size
            else:
                missing.append(range(offset + start, offset + start + size))
        offset += len(source)
    for _ in map_chunks(_Work(sources, partial), missing, "checking", workers):
        pass
    return known


def _held_out_stats(
    held_out: list[CheckedSource], first: int, partial: PartialResults
) -> tuple[RecordStats | None, int]:
    """The evaluation sets as one, and how many of their records could not be read."""
    found, offset, unread = [], 0, 0
    for number, source in enumerate(held_out, first):
        stats = partial.stats(number, _starts(source))
        stats.owner[:] += offset
        offset += len(source)
        unread += int((~stats.digest.any(axis=1)).sum())
        found.append(stats)
    return (RecordStats.joined(found) if found else None), unread


def _keep(path: Path, source: CheckedSource, relations: Relations) -> int:
    keep = np.asarray(source.numbers, np.int64)[relations.sound]
    save_clean_index(path, source.source, keep)
    return len(keep)


def _starts(source: CheckedSource) -> range:
    return range(0, len(source), CHUNK)


def _key(sources: list[CheckedSource], request: CheckRequest) -> str:
    measure = LengthMeasure(request.processor, request.data.max_length).key() if request.processor else "no model"
    identity = (FORMAT, CHUNK, measure, len(request.against), *(source.key() for source in sources))
    return hashlib.blake2b(repr(identity).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
