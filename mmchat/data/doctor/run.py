"""The pass over all records: in parallel, chunk by chunk, each chunk's outcome on the disk before the next one.

A pass that was killed goes on with the chunks that are missing, if data and settings are still the same; a pass that
came to its end leaves no parts, so that the next one sees the images that were mended meanwhile.
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

from mmchat.data.config import DataConfig, SourceConfig
from mmchat.data.dataset import save_clean_index
from mmchat.data.doctor.inputs import Subject, open_subject
from mmchat.data.doctor.outputs import Gatherer, Tally, flat_counts, locate, written_aside
from mmchat.data.doctor.overlap import Relations
from mmchat.data.doctor.partial_results import Facts, Parts
from mmchat.data.lengths import Measure
from mmchat.data.parallel import map_chunks
from mmchat.errors import UserError
from mmchat.files import write_json

CHUNK = 500
"""Records that a killed pass does twice, at most, per process."""
FORMAT = 1
"""Raised when what is found changes: parts of older passes are then made anew."""


@dataclass(frozen=True)
class Question:
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
class Answer:
    """What the reports are made of.

    facts, clean: one per subject, in their order. seconds: this start took. known: records that an earlier start,
    which was stopped, had examined.
    """

    question: Question
    subjects: list[Subject]
    held_out: list[Subject]
    unread: int
    facts: list[Facts]
    clean: list[Path]
    counts: dict[str, int]
    tally: Tally
    parts: Parts
    seconds: float
    known: int

    @property
    def sound(self) -> bool:
        return not self.tally.erroneous


def check(question: Question) -> Answer:
    """Examine everything, write everything into `question.out` but the reports.

    Raises:
        UserError: a source cannot be opened, or `out` cannot be written.
    """
    begun = time.perf_counter()
    data, out = question.data, question.out
    subjects = [
        open_subject(name, config, question.processor, data.max_length) for name, config in data.by_name().items()
    ]
    held_out = [open_subject(config.path, config) for config in question.against]
    for subject in subjects:
        if out.resolve() == Path(subject.config.path).resolve():
            raise UserError(f"{out} is the data's own place; name another --out")
    with told(out):
        parts = Parts(out / "parts", _key(subjects + held_out, question))
    known = _examine(subjects + held_out, parts, question.workers)
    facts = [parts.facts(number, _starts(subject)) for number, subject in enumerate(subjects)]
    other, unread = _held_out_facts(held_out, len(subjects), parts)
    clean = [clean_path(out, subjects, number) for number in range(len(subjects))]
    kept = []
    with (
        told(out),
        written_aside(out / "quarantine.jsonl") as errors,
        written_aside(out / "warnings.jsonl") as warnings,
    ):
        gatherer = Gatherer(errors, warnings, held_out, question.examples)
        for number, (subject, own) in enumerate(zip(subjects, facts, strict=True)):
            relations = Relations(own, other)
            gatherer.add(subject, number, _starts(subject), parts, relations)
            kept.append(_keep(clean[number], subject, relations))
    counts = flat_counts(gatherer.tally, subjects, kept)
    with told(out):
        write_json(out / "findings.json", counts)
    seconds = time.perf_counter() - begun
    return Answer(question, subjects, held_out, unread, facts, clean, counts, gatherer.tally, parts, seconds, known)


def clean_path(out: Path, subjects: list[Subject], number: int) -> Path:
    if len(subjects) == 1:
        return out / "clean.npz"
    return out / f"clean.{number + 1}.{file_name(subjects[number].name)}.npz"


def file_name(name: str) -> str:
    """`name` as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "data"


@contextlib.contextmanager
def told(out: Path) -> Iterator[None]:
    """A full disk, or a folder that may not be written, as a sentence."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise UserError(f"{out} cannot be written: {what}; mend that and start again, the pass goes on") from None


@dataclass(frozen=True)
class _Work:
    subjects: list[Subject]
    parts: Parts

    def __call__(self, chunk: range) -> None:
        number, start = locate(self.subjects, chunk.start)
        subject = self.subjects[number]
        examined = []
        for place in range(start, start + len(chunk)):
            try:
                examined.append(subject.examiner(subject.record(place)))
            except Exception as error:
                error.add_note(f"while examining record {place} of {subject.name}")
                raise
        with told(self.parts.directory):
            self.parts.save(number, start, examined)


def _examine(subjects: list[Subject], parts: Parts, workers: int | None) -> int:
    """Does what is missing; returns how many records were there."""
    missing, known, offset = [], 0, 0
    for number, subject in enumerate(subjects):
        for start in _starts(subject):
            size = min(CHUNK, len(subject) - start)
            if parts.has(number, start):
                known += size
            else:
                missing.append(range(offset + start, offset + start + size))
        offset += len(subject)
    for _ in map_chunks(_Work(subjects, parts), missing, "checking", workers):
        pass
    return known


def _held_out_facts(held_out: list[Subject], first: int, parts: Parts) -> tuple[Facts | None, int]:
    """The evaluation sets as one, and how many of their records could not be read."""
    found, offset, unread = [], 0, 0
    for number, subject in enumerate(held_out, first):
        facts = parts.facts(number, _starts(subject))
        facts.owner[:] += offset
        offset += len(subject)
        unread += int((~facts.digest.any(axis=1)).sum())
        found.append(facts)
    return (Facts.joined(found) if found else None), unread


def _keep(path: Path, subject: Subject, relations: Relations) -> int:
    keep = np.asarray(subject.numbers, np.int64)[relations.sound]
    save_clean_index(path, subject.source, keep)
    return len(keep)


def _starts(subject: Subject) -> range:
    return range(0, len(subject), CHUNK)


def _key(subjects: list[Subject], question: Question) -> str:
    measure = Measure(question.processor, question.data.max_length).key() if question.processor else "no model"
    parts = (FORMAT, CHUNK, measure, len(question.against), *(subject.key() for subject in subjects))
    return hashlib.blake2b(repr(parts).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
