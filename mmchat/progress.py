"""Progress: a live bar on a terminal, a line every few seconds in a log file; and durations as text."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmchat.terminal import PlainConsole

WIDE = 110
"""Columns of a terminal that the whole bar needs beside a note of 45 characters."""
LOG_INTERVAL = 15.0
"""Seconds between two lines if stderr is not a terminal."""


class _LogProgress:
    """Same interface as the bar, but plain lines: a log file must not contain control characters."""

    def __init__(self, description: str, total: int | None, done: int) -> None:
        self.description, self.total, self.done, self.note = description, total, done, ""
        self.first, self.started = done, time.monotonic()
        self.next_line = self.started + LOG_INTERVAL

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + n, note or self.note
        if time.monotonic() >= self.next_line:
            self.line()

    def set_total(self, total: int) -> None:
        self.total = total

    def line(self) -> None:
        now = time.monotonic()
        self.next_line = now + LOG_INTERVAL
        elapsed, advanced = now - self.started, self.done - self.first
        left = None if self.total is None else max(self.total - self.done, 0)
        eta = f", ETA {_clock(elapsed / advanced * left)}" if advanced and left is not None else ""
        note = f"  {self.note}" if self.note else ""
        steps = self.done if self.total is None else f"{self.done}/{self.total}"
        print(f"{self.description}: {steps}  {_clock(elapsed)}{eta}{note}", file=sys.stderr)


class _BarProgress:
    def __init__(self, progress: Progress, description: str, total: int | None, done: int) -> None:
        self.progress = progress
        self.task = progress.add_task(description, total=total, completed=done, note="")

    def advance(self, n: int = 1, note: str = "") -> None:
        fields: dict[str, Any] = {"note": note} if note else {}
        self.progress.update(self.task, advance=n, **fields)

    def set_total(self, total: int) -> None:
        self.progress.update(self.task, total=total)


@contextmanager
def progress_bar(description: str, total: int | None, done: int = 0, enabled: bool = True) -> Iterator:
    """A bar with count, elapsed time and ETA; yields an object with `.advance(n=1, note="")` and `.set_total(n)`.

    Args:
        total: steps in all; None if they are not known yet, so that there is no ETA.
        done: steps that were completed before, for example by a run that is resumed.
        enabled: False shows nothing.
    """
    console = PlainConsole(stderr=True)
    if not enabled:
        yield _Silent()
    elif console.is_terminal:
        with Progress(*bar_columns(console.width), console=console) as progress:
            yield _BarProgress(progress, description, total, done)
    else:
        log = _LogProgress(description, total, done)
        try:
            yield log
        finally:
            log.line()


def bar_columns(width: int) -> list[ProgressColumn]:
    """The parts of the bar. A narrow terminal has room for the numbers only."""
    wide: list[ProgressColumn] = [BarColumn(bar_width=24)] if width >= WIDE else []
    elapsed: list[ProgressColumn] = [TimeElapsedColumn()] if width >= WIDE else []
    times = [*elapsed, TextColumn("ETA"), TimeRemainingColumn()]
    note = TextColumn("{task.fields[note]}", style="dim", markup=False)
    return [TextColumn("{task.description}", markup=False), *wide, MofNCompleteColumn(), *times, note]


class _Silent:
    def advance(self, n: int = 1, note: str = "") -> None:
        pass

    def set_total(self, total: int) -> None:
        pass


def track(iterable: Iterable, description: str, total: int | None = None) -> Iterator:
    """Iterate with a progress bar; `total` is needed if the iterable has no length."""
    with progress_bar(description, len(cast(Sized, iterable)) if total is None else total) as bar:
        for item in iterable:
            yield item
            bar.advance()


def format_duration(seconds: float) -> str:
    """`"0.05 s"`, `"59.9 s"`, `"1.5 min"` or `"1 h 59 min"`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 1 or seconds == 0 else f"{seconds:.2g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if hours else f"{seconds / 60:.1f} min"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
