"""A job over many images: batches, one JSON line per image, resumable. A broken one is a line with its error."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmchat.errors import UserError
from mmchat.files import as_json_line, write_json_lines
from mmchat.progress import progress_bar

_LINE_START = b'{"path": "'

Line = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """key: fields that tell which image a line is of, "path" first. fields: those of an answer.

    answer: as many answers as images, in their order.
    """

    title: str
    key: tuple[str, ...]
    fields: tuple[str, ...]
    answer: Callable[[list[Image.Image]], list[Line]]


@dataclass(frozen=True)
class Item:
    """One image. key: the fields that tell it from others. open: the image, or UserError."""

    key: Line
    open: Callable[[], Image.Image]

    @property
    def name(self) -> tuple:
        return tuple(self.key.values())


@dataclass
class JobSummary:
    done: int = 0
    failed: int = 0
    skipped: int = 0


def run_job(job: Job, items: Sequence[Item], out: Path, batch_size: int) -> JobSummary:
    """Append key and answer, or key and `error`, to `out` for every image that has no answer there yet.

    Lines are flushed batch by batch; a line that a killed run cut off is dropped and its image done again. Images
    that failed before are tried again, and their old line goes.
    """
    answered = [line for line in _finished(job, out) if "error" not in line]
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


def _finished(job: Job, out: Path) -> list[Line]:
    """The lines of an earlier run.

    Raises:
        UserError: the file holds something else, which is not ours to overwrite.
    """
    if not out.exists():
        return []
    try:
        # Bytes: a line may end inside a character. Not splitlines(), which splits at U+2028 and its like, too.
        *texts, cut = out.read_bytes().split(b"\n")
    except IsADirectoryError:
        raise UserError(f"{out} is a folder; name a file as --out") from None
    if cut and not (cut.startswith(_LINE_START) or _LINE_START.startswith(cut)):
        texts.append(cut)  # not what a killed run leaves
    lines: list[Line] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if line.keys() not in ({*job.key, *job.fields}, {*job.key, "error"}):
                raise ValueError
        except (ValueError, AttributeError):
            raise UserError(
                f"{out}:{number} is no line of this job, so this file is not overwritten; name another --out"
            ) from None
        lines.append(line)
    return lines


def _try_open(item: Item) -> Image.Image | str:
    try:
        return item.open()
    except UserError as error:
        return str(error)
