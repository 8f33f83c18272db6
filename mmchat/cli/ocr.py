"""`mmchat ocr`: the text of pages, from images and PDFs."""

import argparse
from dataclasses import asdict
from pathlib import Path

from mmchat.cli.job_options import (
    RESUME,
    add_overwrite,
    add_sources,
    add_workers,
    claim_output,
    fetcher,
    open_engine,
    saying_how_to_resume,
    writing,
)
from mmchat.command_line.arguments import positive
from mmchat.command_line.options import add_max_new_tokens
from mmchat.constants import OCR_PROMPT

EXAMPLE = "mmchat ocr runs/pages/model scans book.pdf --out book.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(RESUME.format("pages"))
    add_sources(parser, "images, PDFs")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="file to write: .jsonl, .parquet, .txt or .md"
    )
    parser.add_argument("--prompt", default=OCR_PROMPT, metavar="TEXT", help="prompt for every page")
    add_workers(parser, 4, "pages", ("ray",))
    add_max_new_tokens(parser, 2048, "text of a page or band")
    parser.add_argument(
        "--max-repeats", type=positive, default=8, metavar="N", help="stop a text that repeats itself this often"
    )
    parser.add_argument(
        "--tile", action="store_true", help="cut pages that are taller than wide into bands, between their lines"
    )
    parser.add_argument(
        "--dpi", type=positive, default=144, metavar="N", help="resolution of PDF pages, pixels per inch"
    )
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    from mmchat.inference.jobs.job import run_job
    from mmchat.inference.jobs.outputs import journal_of, write_parquet
    from mmchat.inference.jobs.sources import Options, Sources
    from mmchat.inference.ocr import DOCUMENT_FORMATS, READING, OcrTask, lines_in_order, write_document
    from mmchat.inference.pages import SUFFIXES, count_pages, pages_of

    journal = journal_of(arguments.out, (*DOCUMENT_FORMATS, ".parquet"))
    sources = Sources(arguments.paths, Options(SUFFIXES, fetcher(arguments), arguments.image_root))
    task = OcrTask(arguments.prompt, arguments.max_new_tokens, arguments.max_repeats, arguments.tile)
    origin = claim_output(arguments, journal, {**asdict(task), "dpi": arguments.dpi})
    with (
        saying_how_to_resume(journal),
        open_engine(arguments, task, journal) as engine,
        writing(arguments, journal, origin),
    ):
        pages = pages_of(sources, arguments.dpi)
        summary = run_job(READING, pages, journal, engine, lambda: count_pages(sources, arguments.dpi))
    if arguments.out.suffix == ".parquet":
        write_parquet(journal, arguments.out, (*READING.key, *READING.fields), ("page", "bands"))
    elif journal != arguments.out:
        write_document(lines_in_order(journal, pages_of(sources, arguments.dpi)), arguments.out)
    print(
        f"{summary.done} pages read, {summary.failed} could not be read, {summary.skipped} were done before; "
        f"{summary.counts['repetition']} repeated themselves and were cut, {summary.counts['length']} reached "
        f"--max-new-tokens: {arguments.out}"
    )
