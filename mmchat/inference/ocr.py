"""OCR of many pages: one line `{"path", "page", "text", "stopped", "bands"}` or `{"path", "page", "error"}` per page.

`stopped` is "end", "length" (`max_new_tokens` was reached) or "repetition" (the text looped and was cut to one copy).
`bands` is the number of pieces that the page was split into.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmchat.constants import OCR_PROMPT
from mmchat.errors import UserError
from mmchat.files import read_json_lines, shown, write_text
from mmchat.inference.batch_job import Item, Job, JobSummary, Line, run_job
from mmchat.inference.generator import Generator, Reading
from mmchat.inference.page_splitting import split_into_bands

STOPS = ("end", "length", "repetition")
"""From best to worst."""


@dataclass(frozen=True)
class OcrOptions:
    """Options of `read_pages`."""

    prompt: str = OCR_PROMPT
    batch_size: int = 4
    max_new_tokens: int = 2048
    repeats: int = 8
    """As in `RepetitionGuard`."""
    tile: bool = False
    """Split pages into bands (`split_into_bands`)."""


def read_pages(generator: Generator, pages: Sequence[Item], out: Path, options: OcrOptions) -> JobSummary:
    """Append the pages that are missing in `out`.

    Args:
        generator: The model.
        pages: The pages.
        out: The JSON lines file.
        options: The prompt and limits.

    Returns:
        How many pages were done, failed and skipped; see `run_job`.
    """
    tower_size = max(spec.image_size for spec in generator.processor.image_processor.specs)

    def answer(images: list[Image.Image]) -> list[Line]:
        pages_as_bands = [split_into_bands(image, tower_size) if options.tile else [image] for image in images]
        readings = iter(
            generator.read(
                [band for bands in pages_as_bands for band in bands],
                options.prompt,
                max_new_tokens=options.max_new_tokens,
                repeats=options.repeats,
            )
        )
        return [_join_bands([next(readings) for _ in bands]) for bands in pages_as_bands]

    job = Job("reading", ("path", "page"), ("text", "stopped", "bands"), answer)
    return run_job(job, pages, out, options.batch_size)


def _join_bands(readings: list[Reading]) -> Line:
    return {
        "text": "\n".join(reading.text for reading in readings if reading.text),
        "stopped": max((reading.stopped for reading in readings), key=STOPS.index),
        "bands": len(readings),
    }


def lines_in_order(lines: Path, pages: Sequence[Item]) -> list[Line]:
    """The lines of these pages, in the order of `pages`. The file has them in the order in which they were read."""
    by_page = {(line["path"], line["page"]): line for line in read_json_lines(lines)}
    return [by_page[page.name] for page in pages]


def write_document(lines: Sequence[Line], out: Path) -> None:
    """Write pages as one document, in the format that the suffix of `out` names (.txt or .md)."""
    write_text(out, _DOCUMENT_FORMATS[out.suffix](lines))


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


_DOCUMENT_FORMATS = {".txt": _plain, ".md": _markdown}


def path_of_lines(out: Path) -> Path:
    """The JSON lines file of an OCR job, from which a stopped job resumes: `out` itself, or `OUT.jsonl` for a document.

    Raises:
        UserError: The suffix names no format, or `out` is a document that no OCR job wrote.
    """
    if out.suffix == ".jsonl":
        return out
    if out.suffix not in _DOCUMENT_FORMATS:
        raise UserError(f"--out {out} must end in one of .jsonl, {', '.join(_DOCUMENT_FORMATS)}, which is its format")
    lines = out.with_name(out.name + ".jsonl")
    if out.exists() and not lines.exists():
        raise UserError(f"{out} was not written by this command, so it is not overwritten; choose another --out")
    return lines
