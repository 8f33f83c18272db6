"""`mmchat ocr`: the text of pages, from images and PDFs."""

import argparse
from collections import Counter
from pathlib import Path

from mmchat.command_line.arguments import positive
from mmchat.command_line.options import add_batch_size, add_max_new_tokens, add_model_directory
from mmchat.constants import OCR_PROMPT
from mmchat.images import IMAGE_SUFFIXES, find_images

EXAMPLE = "mmchat ocr runs/pages/model scans book.pdf --out book.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("Run it again after an interruption: pages that were read are skipped.")
    add_model_directory(parser)
    parser.add_argument(
        "paths", metavar="PATH", type=Path, nargs="+", help="images, PDFs, or folders, which are searched recursively"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write: .jsonl, .txt or .md")
    parser.add_argument("--prompt", default=OCR_PROMPT, metavar="TEXT", help="prompt for every page")
    add_batch_size(parser, 4, "pages")
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


def run(arguments: argparse.Namespace) -> None:
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
        f"{summary.done} pages read, {summary.failed} could not be read, {summary.skipped} were done before; "
        f"{stopped['repetition']} repeated themselves and were cut, {stopped['length']} reached --max-new-tokens: "
        f"{arguments.out}"
    )
