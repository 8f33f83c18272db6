"""OCR of many pages: one line `{"path", "page", "text", "stopped", "bands"}` or `{"path", "page", "error"}` per page.

`stopped` is "end", "length" (`max_new_tokens` was reached) or "repetition" (the text looped and was cut to one copy).
`bands` is the number of pieces that the page was split into.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchat.constants import OCR_PROMPT
from mmchat.files import read_json_lines, shown, write_text
from mmchat.inference.jobs.items import Item, Line, Outcome
from mmchat.inference.jobs.job import Job, JobSummary, run_job, workers
from mmchat.inference.jobs.workers import ThreadWorker
from mmchat.inference.page_splitting import split_into_bands
from mmchat.inference.repetition import RepetitionGuard

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator

STOPS = ("end", "length", "repetition")
"""From best to worst."""


READING = Job("reading", ("path", "page"), ("text", "stopped", "bands"), counted="stopped")


@dataclass(frozen=True)
class OcrTask:
    """Reads a page: asks a model about each of its bands and joins the texts."""

    prompt: str = OCR_PROMPT
    max_new_tokens: int = 2048
    repeats: int = 8
    """As in `RepetitionGuard`."""
    tile: bool = False
    """Split pages into bands (`split_into_bands`)."""

    def __post_init__(self) -> None:
        RepetitionGuard(self.repeats)  # refuses what it cannot count

    def __call__(self, generator: "Generator", item: Item) -> Outcome:
        page = item.open()
        bands = [page]
        if self.tile:
            bands = split_into_bands(page, max(spec.image_size for spec in generator.processor.image_processor.specs))
        content: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "repeats": self.repeats}
        answers = [generator.submit([{"role": "user", "content": content}], [band], **options) for band in bands]
        replies = [answer.result() for answer in answers]
        line = {
            "text": "\n".join(reply.text for reply in replies if reply.text),
            "stopped": max((reply.reason for reply in replies), key=STOPS.index),
            "bands": len(bands),
        }
        return Outcome(line, sum(len(reply.ids) for reply in replies))


def read_pages(
    generator: "Generator", pages: Iterable[Item], out: Path, task: OcrTask, batch_size: int = 4
) -> JobSummary:
    """Append the pages that are missing in `out`.

    Args:
        generator: The model.
        pages: The pages.
        out: The JSON lines file.
        task: The prompt and limits.
        batch_size: Pages in the model at a time.

    Returns:
        How many pages were done, failed and skipped; see `run_job`.
    """
    engine = workers(lambda events: [ThreadWorker(generator, task, batch_size, events)])
    return run_job(READING, pages, out, engine)


def lines_in_order(lines: Path, pages: Iterable[Item]) -> list[Line]:
    """The lines of these pages, each once, in the order of `pages`. The file has them in the order of the answers."""
    by_page = {(line["path"], line["page"]): line for line in read_json_lines(lines)}
    return [by_page[name] for name in dict.fromkeys(page.name for page in pages)]


def write_document(lines: Sequence[Line], out: Path) -> None:
    """Write pages as one document, in the format that the suffix of `out` names (.txt or .md)."""
    write_text(out, DOCUMENT_FORMATS[out.suffix](lines))


def _plain(lines: Sequence[Line]) -> str:
    """A form feed after each page, as in pdftotext."""
    return "".join(f"{_text(line)}\n\f" for line in lines)


def _markdown(lines: Sequence[Line]) -> str:
    """A heading for each file and a comment before each page."""
    parts: list[str] = []
    path = None
    for line in lines:
        if line["path"] != path:
            path = line["path"]
            parts.append(f"# {html.escape(' '.join(shown(path).split()))}")
        parts += [f"<!-- page {line['page']} -->", _text(line)]
    return "\n\n".join(parts) + "\n"


def _text(line: Line) -> str:
    """The text of a page, or a note that it could not be read."""
    return line["text"] if "text" in line else f"[page {line['page']} could not be read: {shown(line['error'])}]"


DOCUMENT_FORMATS = {".txt": _plain, ".md": _markdown}
"""Suffix of a document -> what writes it from lines."""
