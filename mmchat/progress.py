"""Progress for people: a live bar on a terminal, a line now and then in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_INTERVAL = 15.0
"""Seconds between two lines where stderr is not a terminal."""


class _LogProgress:
    """The same three calls as the bar, as plain lines: a log must not fill with control characters."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.done, self.note = description, total, done, ""
        self.first, self.started = done, time.monotonic()
        self.next_line = self.started + LOG_INTERVAL

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + n, note or self.note
        if time.monotonic() >= self.next_line:
            self.line()

    def line(self) -> None:
        now = time.monotonic()
        self.next_line = now + LOG_INTERVAL
        elapsed, advanced = now - self.started, self.done - self.first
        eta = f", ETA {_clock(elapsed / advanced * (self.total - self.done))}" if advanced else ""
        note = f"  {self.note}" if self.note else ""
        print(f"{self.description}: {self.done}/{self.total}  {_clock(elapsed)}{eta}{note}", file=sys.stderr)


class _BarProgress:
    def __init__(self, progress: Progress, description: str, total: int, done: int) -> None:
        self.progress = progress
        self.task = progress.add_task(description, total=total, completed=done, note="")

    def advance(self, n: int = 1, note: str = "") -> None:
        self.progress.update(self.task, advance=n, **({"note": note} if note else {}))


@contextmanager
def progress_bar(description: str, total: int, done: int = 0, enabled: bool = True) -> Iterator:
    """A bar with count, elapsed time and ETA; yields an object whose `.advance(n, note="")` moves it."""
    console = Console(stderr=True)
    if not enabled:
        yield _Silent()
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        with Progress(*columns, console=console) as progress:
            yield _BarProgress(progress, description, total, done)
    else:
        log = _LogProgress(description, total, done)
        try:
            yield log
        finally:
            log.line()


class _Silent:
    def advance(self, n: int = 1, note: str = "") -> None:
        pass


def track(iterable: Iterable, description: str, total: int | None = None) -> Iterator:
    """Iterate with a progress bar; `total` is needed where the iterable has no length."""
    with progress_bar(description, len(iterable) if total is None else total) as bar:
        for item in iterable:
            yield item
            bar.advance()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
