"""`mmchat ocr`: the text of pages, from images and PDFs."""

import argparse
from collections import Counter
from pathlib import Path

from mmchat.command_line.arguments import positive
from mmchat.constants import OCR_PROMPT
from mmchat.images import IMAGE_SUFFIXES, find_images


def add_commands(add) -> None:
    ocr = add(
        "ocr",
        "read every page of images, PDFs and folders of them; a rerun does what is missing",
        "mmchat ocr runs/pages/model scans book.pdf --out book.md",
    )
    ocr.add_argument("checkpoint", metavar="CKPT", type=Path, help="model directory")
    ocr.add_argument("paths", metavar="FILES_OR_FOLDERS", type=Path, nargs="+", help="folders are searched deeply")
    ocr.add_argument("--out", type=Path, required=True, help="what to write: .jsonl, .txt or .md")
    ocr.add_argument("--prompt", default=OCR_PROMPT, help="what each page is asked")
    ocr.add_argument("--batch-size", type=positive, default=4, help="pages per forward")
    ocr.add_argument("--max-new-tokens", type=positive, default=2048, help="longest text of a page or band")
    ocr.add_argument("--max-repeats", type=positive, default=8, help="a text that ends in so many copies is stopped")
    ocr.add_argument("--tile", action="store_true", help="cut pages taller than wide into bands between their lines")
    ocr.add_argument("--dpi", type=positive, default=144, help="pixels per inch of a PDF's pages")
    ocr.set_defaults(run=run_ocr)


def run_ocr(arguments: argparse.Namespace) -> None:
    files = find_images(arguments.paths, IMAGE_SUFFIXES | {".pdf"})
    from mmchat.inference.generator import Generator
    from mmchat.inference.ocr import OcrOptions, lines_in_order, path_of_lines, read_pages, write_document
    from mmchat.inference.pages import list_pages

    lines_file = path_of_lines(arguments.out)
    options = OcrOptions(
        arguments.prompt, arguments.batch_size, arguments.max_new_tokens, arguments.max_repeats, arguments.tile
    )
    pages = [page for file in files for page in list_pages(file, arguments.dpi)]
    summary = read_pages(Generator(arguments.checkpoint), pages, lines_file, options)
    lines = lines_in_order(lines_file, pages)
    if lines_file != arguments.out:
        write_document(lines, arguments.out)
    stopped = Counter(line.get("stopped") for line in lines)
    print(
        f"{summary.done} pages read, {summary.failed} could not be, {summary.skipped} were there already; "
        f"{stopped['repetition']} looped and were cut, {stopped['length']} are longer than --max-new-tokens: "
        f"{arguments.out}"
    )
