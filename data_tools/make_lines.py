"""Draw single lines of text as small images: for a small model that learns to read on a CPU.

    python data_tools/make_lines.py --out data/lines
    python data_tools/make_lines.py --out data/lines --text books --fonts shipped system --count 200000
    python data_tools/make_lines.py --out data/short --width 64 --rows 2 --characters 4 --avoid data/lines/heldout.jsonl

    OUT/train.jsonl    to learn from
    OUT/dev.jsonl      to choose settings by: other texts, no line of train; faces as in train
    OUT/heldout.jsonl  to report from: other texts again; half of the lines in a family that no other split has

Half of the lines are real English, a quarter shuffled words, a quarter random letters and digits; records say which
(`kinds`) and in which family (`families`). Without --text it is the English of Python's own documentation.
"""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from synthetic import english_corpus
from synthetic.fonts import FONTS_HELP, SHIPPED, Face, digest, families, find_faces
from synthetic.generate import ConcatMaker, generate_dataset
from synthetic.preview import write_preview
from synthetic.text_folder import open_texts
from synthetic.text_lines import LineMaker, Style

from mmchat.command_line.arguments import HelpFormatter, OneLineParser, positive
from mmchat.command_line.errors import reporting
from mmchat.constants import OCR_PROMPT
from mmchat.errors import UserError
from mmchat.files import read_json_lines

SPLITS = ("heldout", "dev", "train")


def split_texts(texts: Sequence[str]) -> dict[str, list[str]]:
    """Of 20 neighbouring paragraphs one to hold out, one to choose by, 18 to learn from."""
    places = {"heldout": (0,), "dev": (1,), "train": range(2, 20)}
    return {split: [text for at, text in enumerate(texts) if at % 20 in places[split]] for split in SPLITS}


def plan_splits(
    texts: dict[str, list[str]],
    faces: Sequence[Face],
    unseen: str,
    style: Style,
    counts: tuple[int, ...],
    seed: int,
    taboo: frozenset[str] = frozenset(),
) -> ConcatMaker:
    """Makers of which no two write the same line, and of which only the first uses the family `unseen`; `taboo` are
    lines that none writes."""
    makers = []
    seen = [face for face in faces if face.family != unseen]
    for split, count in zip(SPLITS, counts, strict=True):
        own = faces if split == "heldout" else seen
        maker = LineMaker(split, seed, texts[split], own, style, taboo, unseen)
        makers.append(maker)
        if split != "train":
            taboo |= {maker.text(number) for number in range(count)}
    return ConcatMaker(tuple(makers), counts)


def lines_of(file: Path) -> list[str]:
    """What records say, line by line."""
    return [line for record in read_json_lines(file) for line in record["conversations"][-1]["value"].split("\n")]


def share(word: str) -> float:
    """An option's type: 0 to 1."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {word!r}")
    return value


def main(words: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--text", type=Path, help="folder of .txt and .md files; not given: Python's documentation")
    parser.add_argument("--fonts", nargs="+", default=[SHIPPED], metavar="PLACE", help=FONTS_HELP)
    parser.add_argument("--unseen-family", default="DejaVu Serif", help="family that only held-out lines are drawn in")
    parser.add_argument("--count", type=positive, default=50_000, help="lines to learn from")
    parser.add_argument("--dev", type=positive, default=500, help="lines to choose by")
    parser.add_argument("--heldout", type=positive, default=500, help="lines to report from")
    parser.add_argument("--characters", type=positive, default=24, help="length of the longest lines")
    parser.add_argument("--width", type=positive, default=256, help="of a line's place, in pixels")
    parser.add_argument("--height", type=positive, default=32, help="of a line's place, in pixels")
    parser.add_argument(
        "--rows", type=positive, default=1, help="places under each other; images to learn from fill 1 to all of them"
    )
    parser.add_argument("--avoid", type=Path, action="append", default=[], help="records whose lines none is to have")
    parser.add_argument("--freedom", type=share, default=1.0, help="0: black on white at the left; 1: all differs")
    parser.add_argument("--prompt", default=OCR_PROMPT, help="what the human asks below the image; may be empty")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other lines")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--preview", type=int, default=40, help="lines on the sheet preview.png; 0 makes none")
    arguments = parser.parse_args(words)
    with reporting():
        make_lines(arguments)


def make_lines(arguments: argparse.Namespace) -> None:
    faces = find_faces(arguments.fonts)
    if arguments.unseen_family not in families(faces) or len(families(faces)) < 2:
        raise UserError(
            f"--unseen-family {arguments.unseen_family!r} must be one of at least two families, found "
            f"{', '.join(families(faces))}"
        )
    texts = (
        [each.text for each in open_texts(arguments.text).paragraphs()]
        if arguments.text
        else english_corpus.paragraphs()
    )
    splits = split_texts(texts)
    if not all(splits.values()):
        raise UserError(f"{len(texts)} paragraphs of text are too few for three splits; give more --text")
    style = Style(
        (arguments.width, arguments.height), arguments.characters, arguments.prompt, arguments.freedom, arguments.rows
    )
    counts = (arguments.heldout, arguments.dev, arguments.count)
    taboo = frozenset(line for file in arguments.avoid for line in lines_of(file))
    make = plan_splits(splits, faces, arguments.unseen_family, style, counts, arguments.seed, taboo)
    plan = {
        "program": "make_lines",
        "seed": arguments.seed,
        "counts": counts,
        "style": asdict(style),
        "unseen_family": arguments.unseen_family,
        "fonts": digest(faces),
        "avoided": hashlib.sha256("\n".join(sorted(taboo)).encode()).hexdigest(),
        "texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
    }
    written = generate_dataset(make, len(make), arguments.out, plan, arguments.workers, stretch=1000)
    if arguments.preview:
        cell = min(max(style.size[0], 160), 320)
        sheet = write_preview(arguments.out / "heldout.jsonl", arguments.preview, cell, columns=4, lines=2)
        print(f"look at {sheet}")
    print(f"{arguments.out}: " + ", ".join(f"{written[split]:,} in {split}.jsonl" for split in SPLITS))


if __name__ == "__main__":
    main()
