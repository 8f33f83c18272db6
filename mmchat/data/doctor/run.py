"""Check all records in parallel, in chunks. The result of each chunk is written to disk.

A killed check resumes with the missing chunks if data and settings are unchanged. A finished check deletes its partial
results, so that the next one notices images that were fixed in the meantime.
"""

import contextlib
import hashlib
import re
import time
from collections import Counter
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
"""Records per chunk: at most this many per process are repeated after a kill."""
FORMAT = 2
"""Version of the partial results. Increase it when findings change; older results are then recomputed."""


@dataclass(frozen=True)
class CheckRequest:
    """What to check.

    Attributes:
        data: The sources.
        out: Folder for the results.
        against: Evaluation sets to compare with.
        processor: The model's processor; None without a model.
        workers: Number of processes. 0 works in this process; None decides by the number of records.
        examples: Findings of each kind that the report shows.
    """

    data: DataConfig
    out: Path
    against: tuple[SourceConfig, ...] = ()
    processor: Any = None
    workers: int | None = None
    examples: int = 6


@dataclass(frozen=True)
class CheckResult:
    """The result of a check, from which the reports are made.

    Attributes:
        request: What was checked.
        sources: The sources.
        held_out: The evaluation sets.
        unread: Records of the evaluation sets that could not be read.
        stats: Per source.
        clean: Path of each source's clean index.
        counts: Contents of `findings.json`.
        unread_keys: How many records hold each key that is not read.
        tally: Findings by kind.
        partial: The partial results, to be deleted once the reports are written.
        seconds: Duration of this run of the check.
        known: Records checked by an earlier run that was stopped.
    """

    request: CheckRequest
    sources: list[CheckedSource]
    held_out: list[CheckedSource]
    unread: int
    stats: list[RecordStats]
    clean: list[Path]
    counts: dict[str, int]
    unread_keys: Counter[str]
    tally: Tally
    partial: PartialResults
    seconds: float
    known: int

    @property
    def sound(self) -> bool:
        return not self.tally.erroneous


def check(request: CheckRequest) -> CheckResult:
    """Check all records and write everything but the reports to `request.out`.

    Raises:
        UserError: A source cannot be opened, or `out` cannot be written.
    """
    begun = time.perf_counter()
    data, out = request.data, request.out
    sources = [
        open_checked_source(name, config, request.processor, data.max_length) for name, config in data.by_name().items()
    ]
    held_out = [open_checked_source(config.path, config) for config in request.against]
    for source in sources:
        if out.resolve() == Path(source.config.path).resolve():
            raise UserError(f"--out {out} is the data itself; choose another folder")
    with explain_write_errors(out):
        partial = PartialResults(out / "parts", _key(sources + held_out, request))
    known = _check_missing_chunks(sources + held_out, partial, request.workers)
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
        for number, (source, source_stats) in enumerate(zip(sources, stats, strict=True)):
            relations = Relations(source_stats, other)
            gatherer.add(source, number, _starts(source), partial, relations)
            kept.append(_save_clean_index(clean[number], source, relations))
    unread_keys = sum((partial.unread_keys(n, _starts(source)) for n, source in enumerate(sources)), Counter())
    counts = flat_counts(gatherer.tally, sources, kept, unread_keys)
    with explain_write_errors(out):
        write_json(out / "findings.json", counts)
    seconds = time.perf_counter() - begun
    return CheckResult(
        request, sources, held_out, unread, stats, clean, counts, unread_keys, gatherer.tally, partial, seconds, known
    )


def clean_path(out: Path, sources: list[CheckedSource], number: int) -> Path:
    """Path of the clean index of source `number`."""
    if len(sources) == 1:
        return out / "clean.npz"
    return out / f"clean.{number + 1}.{file_name(sources[number].name)}.npz"


def file_name(name: str) -> str:
    """`name` as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "data"


@contextlib.contextmanager
def explain_write_errors(out: Path) -> Iterator[None]:
    """Turn errors of writing (a full disk, missing permission) into a UserError."""
    try:
        yield
    except OSError as error:
        problem = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise UserError(f"{out} cannot be written: {problem}; fix that and start again to resume the check") from None


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
                error.add_note(f"while checking record {place} of {source.name}")
                raise
        with explain_write_errors(self.partial.directory):
            self.partial.save(number, start, checked)


def _check_missing_chunks(sources: list[CheckedSource], partial: PartialResults, workers: int | None) -> int:
    """Check the chunks without a result. Returns the number of records that had one."""
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
    """Stats of all evaluation sets, concatenated, and the number of their unreadable records."""
    found, offset, unread = [], 0, 0
    for number, source in enumerate(held_out, first):
        stats = partial.stats(number, _starts(source))
        stats.owner[:] += offset
        offset += len(source)
        unread += int((~stats.digest.any(axis=1)).sum())
        found.append(stats)
    return (RecordStats.joined(found) if found else None), unread


def _save_clean_index(path: Path, source: CheckedSource, relations: Relations) -> int:
    keep = np.asarray(source.numbers, np.int64)[relations.sound]
    save_clean_index(path, source.source, keep)
    return len(keep)


def _starts(source: CheckedSource) -> range:
    return range(0, len(source), CHUNK)


def _key(sources: list[CheckedSource], request: CheckRequest) -> str:
    measure = LengthMeasure(request.processor, request.data.max_length).key() if request.processor else "no model"
    identity = (FORMAT, CHUNK, measure, len(request.against), *(source.key() for source in sources))
    return hashlib.blake2b(repr(identity).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
