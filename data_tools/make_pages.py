"""Draw pages of real text, or take them from PDFs: for a tower that learns to read.

    python data_tools/make_pages.py --text books --out data/pages --count 10000
    python data_tools/make_pages.py --text papers --out data/pages --count 500 --degrade strong --fonts fonts system

    OUT/pages.jsonl    LLaVA's records: the image, and all that stands on it in reading order
    OUT/skipped/       pages of PDFs that were left out, and pages that were drawn again, and why

A folder holds .txt, .md and .pdf. Pages of PDFs come first, each once, as they are; the others are set from the texts,
anew for every number: columns, headings, tables, formulas, one of the fonts that have all the characters.
"""

import argparse
from pathlib import Path

from synthetic.degradation import LEVELS
from synthetic.fonts import FONTS_HELP, SHIPPED, SYSTEM, digest, find_faces
from synthetic.generate import REDRAWN, SKIPPED, ConcatMaker, generate_dataset
from synthetic.pages import PageMaker
from synthetic.pdf import PdfMaker, open_pdfs
from synthetic.preview import write_preview
from synthetic.text_folder import open_texts

from mmchat.command_line.arguments import HelpFormatter, OneLineParser, positive
from mmchat.command_line.errors import reporting
from mmchat.constants import OCR_PROMPT
from mmchat.errors import UserError

LETTERS = ((9, 12), (12, 26))
"""The smallest and the largest em of the body: at least, and where a page has 1,024 pixels; in pixels."""


def main(words: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of .txt, .md and .pdf")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--count", type=positive, default=1000, help="pages")
    parser.add_argument("--size", type=positive, default=1024, help="side of a page in pixels; of a PDF's the longer")
    letters = "em of the text's letters, smallest and largest, in pixels; not given: 12 and 26 at a --size of 1024"
    parser.add_argument("--letters", type=positive, nargs=2, metavar=("MIN", "MAX"), help=letters)
    parser.add_argument("--degrade", choices=LEVELS, default="light", help="skew, blur, paper, noise, JPEG; none: PNG")
    parser.add_argument("--fonts", nargs="+", default=[SHIPPED, SYSTEM], metavar="PLACE", help=FONTS_HELP)
    parser.add_argument("--prompt", default=OCR_PROMPT, help="what the human asks below the image; may be empty")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pages")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--preview", type=int, default=12, help="pages on the sheet preview.png; 0 makes none")
    arguments = parser.parse_args(words)
    with reporting():
        make_pages(arguments)


def make_pages(arguments: argparse.Namespace) -> None:
    faces, texts, pdfs = find_faces(arguments.fonts), open_texts(arguments.text), open_pdfs(arguments.text)
    of_pdfs = min(len(pdfs), arguments.count)
    if arguments.count > of_pdfs and not texts.size:
        found = f"{of_pdfs} pages of PDFs" if of_pdfs else "no .txt, .md or .pdf"
        raise UserError(f"{arguments.text} holds {found} and no other text; expected enough for --count")
    smallest, largest = arguments.letters or (max(least, round(arguments.size * em / 1024)) for least, em in LETTERS)
    if not 4 <= smallest <= largest <= arguments.size / 16:
        raise UserError(f"--letters {smallest} {largest}: expected 4 to {arguments.size // 16}, the smaller one first")
    same = {"seed": arguments.seed, "side": arguments.size, "level": arguments.degrade, "prompt": arguments.prompt}
    make = ConcatMaker(
        makers=(PdfMaker(pages=pdfs, **same), PageMaker(texts=texts, faces=faces, ems=(smallest, largest), **same)),
        counts=(of_pdfs, arguments.count - of_pdfs),
    )
    plan = {
        "program": "make_pages",
        **same,
        "letters": [smallest, largest],
        "fonts": digest(faces),
        "texts": texts.digest,
        "pdfs": pdfs.digest,
    }
    written = generate_dataset(make, len(make), arguments.out, plan, arguments.workers)
    skipped = written.get(f"{SKIPPED}/pages", 0)
    if arguments.preview and "pages" in written:
        print(f"look at {write_preview(arguments.out / 'pages.jsonl', arguments.preview, 400, columns=3, lines=4)}")
    again = written.get(REDRAWN, 0)
    print(f"{arguments.out}: {written.get('pages', 0):,} pages, {skipped:,} of PDFs left out, {again:,} drawn again")


if __name__ == "__main__":
    main()
