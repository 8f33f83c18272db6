"""A resumable job over many images: batches, one JSON line per image. A failed image is a line with its error."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmchat.errors import UserError
from mmchat.files import as_json_line, split_complete_lines, write_json_lines
from mmchat.progress import progress_bar

_LINE_START = b'{"path": "'

Line = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What to do with each image."""

    title: str
    """Title of the progress bar."""
    key: tuple[str, ...]
    """Fields of a line that identify its image, "path" first."""
    fields: tuple[str, ...]
    """Fields of an answer."""
    answer: Callable[[list[Image.Image]], list[Line]]
    """Answers a batch: one answer per image, in order."""


@dataclass(frozen=True)
class Item:
    """One image of a job."""

    key: Line
    """The fields that identify it."""
    open: Callable[[], Image.Image]
    """Reads the image, or raises UserError."""

    @property
    def name(self) -> tuple:
        """The values of `key`."""
        return tuple(self.key.values())


@dataclass
class JobSummary:
    """Counts of images."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    """Had an answer from an earlier run."""


def run_job(job: Job, items: Sequence[Item], out: Path, batch_size: int) -> JobSummary:
    """Append a line to `out` for every image without an answer there: its key with the answer or an `error`.

    Lines are flushed after each batch. A line that a killed run left incomplete is dropped and its image is processed
    again. Images that failed before are retried, and their old lines are removed.

    Args:
        job: What to do.
        items: The images.
        out: The JSON lines file.
        batch_size: Images per batch.

    Returns:
        How many images were done, failed and skipped.

    Raises:
        UserError: `out` holds lines of something else.
    """
    answered = [line for line in _read_lines(job, out) if "error" not in line]
    kept = {tuple(line[field] for field in job.key): line for line in answered}
    write_json_lines(out, kept.values())
    missing = [item for item in items if item.name not in kept]
    summary = JobSummary(skipped=len(items) - len(missing))
    with out.open("ab") as sink, progress_bar(job.title, len(missing)) as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            opened = [_try_open(item) for item in batch]
            answers = iter(job.answer([image for image in opened if isinstance(image, Image.Image)]))
            for item, image in zip(batch, opened, strict=True):
                if isinstance(image, str):
                    line, summary.failed = {"error": image}, summary.failed + 1
                else:
                    line, summary.done = next(answers), summary.done + 1
                sink.write(as_json_line(item.key | line))
            sink.flush()
            bar.advance(len(batch))
    return summary


def _read_lines(job: Job, out: Path) -> list[Line]:
    """The lines of an earlier run. Raises UserError if the file holds anything else, so that it is not overwritten."""
    if not out.exists():
        return []
    try:
        texts, incomplete = split_complete_lines(out)
    except IsADirectoryError:
        raise UserError(f"{out} is a folder; --out must be a file") from None
    if incomplete and not (incomplete.startswith(_LINE_START) or _LINE_START.startswith(incomplete)):
        texts.append(incomplete)  # not the beginning of a line of ours
    lines: list[Line] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if line.keys() not in ({*job.key, *job.fields}, {*job.key, "error"}):
                raise ValueError
        except (ValueError, AttributeError):
            raise UserError(
                f"{out}:{number} is not a line of this job, so the file is not overwritten; choose another --out"
            ) from None
        lines.append(line)
    return lines


def _try_open(item: Item) -> Image.Image | str:
    try:
        return item.open()
    except UserError as error:
        return str(error)
