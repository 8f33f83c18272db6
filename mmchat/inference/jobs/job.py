"""A resumable job over a stream of images: one JSON line per image. A failed image is a line with its error."""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from mmchat.errors import UserError
from mmchat.inference.jobs.digests import DigestSet
from mmchat.inference.jobs.dispatch import dispatch
from mmchat.inference.jobs.items import Item, Line, Outcome
from mmchat.inference.jobs.journal import Journal
from mmchat.inference.jobs.workers import WorkerFactory
from mmchat.progress import progress_bar

Engine = Callable[[Iterable[Item]], Generator[tuple[Item, Outcome], None, None]]
"""Answers a stream of items, each once, in any order, until it is closed."""


@dataclass(frozen=True)
class Job:
    """What the lines of a job hold."""

    title: str
    """Title of the progress bar."""
    key: tuple[str, ...]
    """Fields of a line that identify its image; the first is a text and begins the line."""
    fields: tuple[str, ...]
    """Fields of an answer."""
    counted: str | None = None
    """A field of an answer whose values are counted."""


@dataclass
class JobSummary:
    """Counts of images."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    """Had an answer from an earlier run."""
    tokens: int = field(default=0, compare=False)
    """Tokens that were made."""
    seconds: float = field(default=0.0, compare=False)
    counts: Counter[str] = field(default_factory=Counter, compare=False)
    """How often the job's `counted` has which value, over all runs."""

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Count an outcome, so many seconds after the start."""
        self.failed += outcome.failed
        self.done += not outcome.failed
        self.tokens += outcome.tokens
        self.seconds = seconds

    def speed(self) -> str:
        """`"3.2 images/s, 41 tokens/s"`, tokens if they are known."""
        seconds = max(self.seconds, 1e-9)
        tokens = f", {self.tokens / seconds:,.0f} tokens/s" if self.tokens else ""
        return f"{(self.done + self.failed) / seconds:,.1f} images/s{tokens}"


def workers(make: WorkerFactory) -> Engine:
    """The engine that consists of workers."""
    return lambda items: dispatch(items, make)


def run_job(
    job: Job,
    items: Iterable[Item],
    out: Path,
    engine: Engine,
    count: Callable[[], int | None] = lambda: None,
    on_line: Callable[[Line], None] | None = None,
) -> JobSummary:
    """Append a line to `out` for every image without an answer there: its key with the answer or an `error`.

    Every line is passed to the operating system before the next. A line that a killed run left incomplete is dropped
    and its image is processed again. Images that failed before are retried, and their old lines are removed. An item
    that comes twice is processed once.

    Args:
        job: What the lines hold.
        items: The images, a stream of any length; read once.
        out: The JSON lines file.
        engine: Answers them.
        count: Returns the number of items, or None. Called in a thread of its own, because counting may take long.
        on_line: Called with every line: those of earlier runs that are kept, then new ones after they are written.

    Returns:
        How many images were done, failed and skipped.

    Raises:
        UserError: `out` holds lines of something else.
    """
    summary = JobSummary()

    def seen(line: Line) -> None:
        if job.counted in line:
            summary.counts[line[job.counted]] += 1
        if on_line is not None:
            on_line(line)

    with Journal(out, job.key, job.fields, seen) as journal:
        begun = time.monotonic()
        with (
            progress_bar(job.title, None, len(journal.answered)) as bar,
            closing(engine(_unanswered(items, journal.answered, summary))) as answers,
        ):
            Thread(target=_count, args=(count, bar), name="mmchat-count", daemon=True).start()
            for item, outcome in answers:
                seen(journal.append(item, outcome))
                summary.add(outcome, time.monotonic() - begun)
                bar.advance(note=f"{summary.speed()}, {summary.failed} failed")
    return summary


def _count(count: Callable[[], int | None], bar: Any) -> None:
    with suppress(UserError, OSError):  # reading the items raises it too
        if (total := count()) is not None:
            bar.set_total(total)


def _unanswered(items: Iterable[Item], answered: DigestSet, summary: JobSummary) -> Iterator[Item]:
    """The items without an answer, each once. Counts the others."""
    seen = DigestSet()
    for item in items:
        name = list(item.name)
        if not seen.add(name):
            continue
        if name in answered:
            summary.skipped += 1
        else:
            yield item
