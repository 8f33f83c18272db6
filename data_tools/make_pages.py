"""Draw pages of real text, or take them from PDFs, to train a tower that reads.

    python data_tools/make_pages.py --text books --out data/pages --count 10000
    python data_tools/make_pages.py --text papers --out data/pages --count 500 --degrade strong --fonts fonts system

    OUT/pages.jsonl    records in LLaVA's format: the image, and its full text in reading order
    OUT/skipped/       pages of PDFs that were left out and pages that were redrawn, with reasons

The folder holds .txt, .md and .pdf files. Pages of PDFs come first, each once, unchanged. All others are typeset from
the texts with random columns, headings, tables, formulas and fonts.
"""

import argparse
from pathlib import Path

from synthetic.degradation import LEVELS
from synthetic.fonts import SHIPPED, SYSTEM, digest, find_faces
from synthetic.generate import REDRAWN, SKIPPED, ConcatMaker, generate_dataset
from synthetic.options import add_count_option, add_fonts_option, add_prompt_option, generation_parser, print_preview
from synthetic.pages import PageMaker
from synthetic.pdf import PdfMaker, open_pdfs
from synthetic.text_folder import open_texts

from mmchat.command_line.arguments import positive
from mmchat.command_line.errors import reporting
from mmchat.errors import UserError

LETTERS = ((9, 12), (12, 26))
"""(lower bound, default for pages of 1,024 pixels) of the smallest and the largest font size of the body, in pixels."""


def main(argv: list[str] | None = None) -> None:
    parser = generation_parser(__doc__, "pages", preview=12)
    parser.add_argument("--text", type=Path, required=True, help="folder of .txt, .md and .pdf files")
    add_count_option(parser, "pages")
    parser.add_argument(
        "--size", type=positive, default=1024, help="side of a page in pixels; longer side of a PDF page"
    )
    letters = "smallest and largest font size in pixels; default: 12 and 26 at a --size of 1024"
    parser.add_argument("--letters", type=positive, nargs=2, metavar=("MIN", "MAX"), help=letters)
    parser.add_argument("--degrade", choices=LEVELS, default="light", help="skew, blur, paper, noise, JPEG; none: PNG")
    add_fonts_option(parser, SHIPPED, SYSTEM)
    add_prompt_option(parser)
    arguments = parser.parse_args(argv)
    with reporting():
        make_pages(arguments)


def make_pages(arguments: argparse.Namespace) -> None:
    faces, texts, pdfs = find_faces(arguments.fonts), open_texts(arguments.text), open_pdfs(arguments.text)
    pdf_count = min(len(pdfs), arguments.count)
    if arguments.count > pdf_count and not texts.size:
        found = f"{pdf_count} pages of PDFs" if pdf_count else "no .txt, .md or .pdf"
        raise UserError(f"{arguments.text} contains {found} and no other text; expected enough for --count")
    smallest, largest = arguments.letters or (max(least, round(arguments.size * em / 1024)) for least, em in LETTERS)
    if not 4 <= smallest <= largest <= arguments.size / 16:
        raise UserError(f"--letters {smallest} {largest}: expected 4 to {arguments.size // 16}, the smaller one first")
    settings = {"seed": arguments.seed, "side": arguments.size, "level": arguments.degrade, "prompt": arguments.prompt}
    make = ConcatMaker(
        makers=(
            PdfMaker(pages=pdfs, **settings),
            PageMaker(texts=texts, faces=faces, ems=(smallest, largest), **settings),
        ),
        counts=(pdf_count, arguments.count - pdf_count),
    )
    plan = {
        "program": "make_pages",
        **settings,
        "letters": [smallest, largest],
        "fonts": digest(faces),
        "texts": texts.digest,
        "pdfs": pdfs.digest,
    }
    written = generate_dataset(make, len(make), arguments.out, plan, arguments.workers)
    skipped = written.get(f"{SKIPPED}/pages", 0)
    if "pages" in written:
        print_preview(arguments, "pages", cell=400, columns=3, lines=4)
    redrawn = written.get(REDRAWN, 0)
    print(f"{arguments.out}: {written.get('pages', 0):,} pages, {skipped:,} PDF pages left out, {redrawn:,} redrawn")


if __name__ == "__main__":
    main()
