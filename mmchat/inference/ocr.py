"""Reading pages: a line `{"path", "page", "text", "stopped", "bands"}` or `{"path", "page", "error"}` each.

stopped: "end", "length" (`max_new_tokens` ran out) or "repetition" (the text began to loop, and is cut to one copy).
bands: into how many pieces the page was cut.
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
"""From harmless to worst."""


@dataclass(frozen=True)
class OcrOptions:
    """repeats: see `RepetitionGuard`. tile: cut pages into bands (`split_into_bands`)."""

    prompt: str = OCR_PROMPT
    batch_size: int = 4
    max_new_tokens: int = 2048
    repeats: int = 8
    tile: bool = False


def read_pages(generator: Generator, pages: Sequence[Item], out: Path, options: OcrOptions) -> JobSummary:
    """Append the pages that are not in `out` yet; see `run_job`."""
    tower_size = max(spec.image_size for spec in generator.processor.image_processor.specs)

    def answer(images: list[Image.Image]) -> list[Line]:
        cut = [split_into_bands(image, tower_size) if options.tile else [image] for image in images]
        readings = iter(
            generator.read(
                [band for bands in cut for band in bands],
                options.prompt,
                batch_size=options.batch_size,
                max_new_tokens=options.max_new_tokens,
                repeats=options.repeats,
            )
        )
        return [_joined([next(readings) for _ in bands]) for bands in cut]

    job = Job("reading", ("path", "page"), ("text", "stopped", "bands"), answer)
    return run_job(job, pages, out, options.batch_size)


def _joined(readings: list[Reading]) -> Line:
    return {
        "text": "\n".join(reading.text for reading in readings if reading.text),
        "stopped": max((reading.stopped for reading in readings), key=STOPS.index),
        "bands": len(readings),
    }


def lines_in_order(lines: Path, pages: Sequence[Item]) -> list[Line]:
    """The lines of these pages, in their order: those done late, or by another call, stand elsewhere in the file."""
    by_page = {(line["path"], line["page"]): line for line in read_json_lines(lines)}
    return [by_page[page.name] for page in pages]


def write_document(lines: Sequence[Line], out: Path) -> None:
    """Pages as one text, in the format that `out` ends in."""
    write_text(out, _TEXTS[out.suffix](lines))


def _plain(lines: Sequence[Line]) -> str:
    """A form feed after each page, as pdftotext has it."""
    return "".join(f"{_text(line)}\n\f" for line in lines)


def _markdown(lines: Sequence[Line]) -> str:
    """A heading per file, a comment before each page."""
    parts: list[str] = []
    path = None
    for line in lines:
        if line["path"] != path:
            path = line["path"]
            parts.append(f"# {html.escape(' '.join(shown(path).split()))}")
        parts += [f"<!-- page {line['page']} -->", _text(line)]
    return "\n\n".join(parts) + "\n"


def _text(line: Line) -> str:
    """Of a page, or that there should be one."""
    return line["text"] if "text" in line else f"[page {line['page']} could not be read: {shown(line['error'])}]"


_TEXTS = {".txt": _plain, ".md": _markdown}


def path_of_lines(out: Path) -> Path:
    """Where the lines go: `out` itself or, where that is text, the file beside it from which a stopped job goes on.

    Raises:
        UserError: an ending that says no format, or a text that no job of ours has written.
    """
    if out.suffix == ".jsonl":
        return out
    if out.suffix not in _TEXTS:
        raise UserError(f"--out {out} ends in none of .jsonl, {', '.join(_TEXTS)}, which say the format")
    lines = out.with_name(out.name + ".jsonl")
    if out.exists() and not lines.exists():
        raise UserError(f"{out} was written by something else, so it is not overwritten; name another --out")
    return lines
