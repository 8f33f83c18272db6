"""Runs cases in a process of its own: how each ended, its CPU time and its memory.

A case may return, raise `UserError`, or exit with status 0 or 2. Everything else is a failure: another exception, the
death of the process, more than MAX_SECONDS of CPU time, or more than MAX_BYTES of memory above what was used before.
"""

import contextlib
import io
import json
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mmchat.errors import UserError

MAX_SECONDS = 5.0
MAX_BYTES = 1e9
MAX_WALL_SECONDS = 120.0
"""For a case that waits instead of computing. Other processes of the machine take their part of it."""
SHOWN = 160
"""How many characters of a message are counted as one."""
ROOM = 4 * 2**30
"""Address space that a case may take, so that a failure does not take the machine's memory."""


@dataclass
class Report:
    """What came of the cases of one kind."""

    kind: str
    cases: int = 0
    opened: int = 0
    refused: int = 0
    most_seconds: float = 0.0
    most_bytes: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number of the case, and how it failed."""
    said: Counter = field(default_factory=Counter)
    """Messages without their paths and numbers."""

    def line(self) -> str:
        return (
            f"{self.kind}: {self.cases:,} cases, {self.opened:,} opened, {self.refused:,} refused, "
            f"{len(self.failures)} failed; slowest {self.most_seconds:.2f} s of CPU time, most memory "
            f"{self.most_bytes / 1e6:,.0f} MB"
        )


def run_cases(kind: str, case: Callable[[int], str], count: int, first: int = 0) -> Report:
    """Run `case(first)` to `case(first + count - 1)`, each at most once.

    Args:
        kind: What the report calls them.
        case: Runs one; returns what it made of it, "" if it only opened.
        count: How many.
        first: Number of the first.
    """
    report, number = Report(kind), first
    while number < first + count:
        number = _run_until_death(case, number, first + count, report)
    return report


def _run_until_death(case: Callable[[int], str], number: int, end: int, report: Report) -> int:
    """Run cases in a new process until all are done or it dies; the number of the next case."""
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(read)
        _work(case, number, end, write)
    os.close(write)
    with os.fdopen(read, "rb") as lines:
        while number < end and (line := _next_line(lines)):
            _note(report, number, json.loads(line))
            number += 1
    if number < end:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if number < end:
        ended = f"signal {signal.Signals(status & 127).name}" if status & 127 else f"status {status >> 8}"
        _note(report, number, {"failed": f"the process ended by {ended}", "seconds": 0, "bytes": 0})
        number += 1
    return number


def _next_line(lines) -> bytes:
    """The next line of a pipe; nothing if none comes in time."""
    ready, _, _ = select.select([lines], [], [], MAX_WALL_SECONDS) if not lines.peek(1) else ([lines], [], [])
    return lines.readline() if ready else b""


def _note(report: Report, number: int, found: dict) -> None:
    report.cases += 1
    report.most_seconds = max(report.most_seconds, found["seconds"])
    report.most_bytes = max(report.most_bytes, found["bytes"])
    failed = found.get("failed")
    if failed is None and found["seconds"] > MAX_SECONDS:
        failed = f"{found['seconds']:.1f} s of CPU time"
    if failed is None and found["bytes"] > MAX_BYTES:
        failed = f"{found['bytes'] / 1e6:,.0f} MB"
    if failed is not None:
        report.failures.append((number, failed))
        print(f"FAILED {report.kind} {number}: {failed}", flush=True)
    elif "refused" in found:
        report.refused += 1
        report.said[re.sub(r"\d+|/\S+", "#", found["refused"])[:SHOWN]] += 1
    else:
        report.opened += 1


def _work(case: Callable[[int], str], number: int, end: int, write: int) -> None:
    """The child's part. It never returns."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # also for libraries in C, which print about damage
        os.dup2(null, descriptor)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    while number < end:
        os.write(write, json.dumps(_one(case, number)).encode() + b"\n")
        number += 1
    os._exit(0)


def _one(case: Callable[[int], str], number: int) -> dict:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is used now
    before, started = _status("VmRSS"), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 4 * MAX_SECONDS)  # its signal ends the process
    found: dict = {}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            case(number)
    except UserError as error:
        found["refused"] = str(error)
    except SystemExit as stopped:
        if stopped.code == 2:
            found["refused"] = said.getvalue().rpartition("error: ")[2].strip() or "status 2"
        elif stopped.code not in (0, None):
            found["failed"] = f"status {stopped.code}"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        shown = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-9:]))
        found["failed"] = f"{type(error).__name__}: {str(error)[:200]} {getattr(error, '__notes__', '')} at {shown}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    if "Traceback" in said.getvalue():  # of a thread
        found["failed"] = said.getvalue()[-300:]
    return found | {"seconds": time.process_time() - started, "bytes": max(0, _status("VmHWM") - before)}


def _status(name: str) -> int:
    """A value of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) * 1024
