"""Draw single lines of text as small images, to train a small model that reads, on a CPU.

    python data_tools/make_lines.py --out data/lines
    python data_tools/make_lines.py --out data/lines --text books --fonts shipped system --count 200000
    python data_tools/make_lines.py --out data/short --width 64 --rows 2 --characters 4 --avoid data/lines/heldout.jsonl

    OUT/train.jsonl    for training
    OUT/dev.jsonl      for choosing hyperparameters: other texts, no line of train, the same fonts
    OUT/heldout.jsonl  for reporting: other texts; half of the lines in a font family that no other split uses

Half of the lines are English, a quarter shuffled words, a quarter random letters and digits. Records have this kind
(`kinds`) and the font families (`families`). Without --text, the English of Python's documentation is used.
"""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from synthetic import english_corpus
from synthetic.fonts import SHIPPED, Face, digest, families, find_faces
from synthetic.generate import ConcatMaker, generate_dataset
from synthetic.options import add_count_option, add_fonts_option, add_prompt_option, generation_parser, print_preview
from synthetic.text_folder import open_texts
from synthetic.text_lines import LineMaker, LineStyle

from mmchat.command_line.arguments import positive
from mmchat.command_line.errors import reporting
from mmchat.errors import UserError
from mmchat.files import read_json_lines

SPLITS = ("heldout", "dev", "train")


def split_texts(texts: Sequence[str]) -> dict[str, list[str]]:
    """Of 20 consecutive paragraphs, one goes to heldout, one to dev and 18 to train."""
    places = {"heldout": (0,), "dev": (1,), "train": range(2, 20)}
    return {split: [text for at, text in enumerate(texts) if at % 20 in places[split]] for split in SPLITS}


def plan_splits(
    texts: dict[str, list[str]],
    faces: Sequence[Face],
    unseen: str,
    style: LineStyle,
    counts: tuple[int, ...],
    seed: int,
    excluded: frozenset[str] = frozenset(),
) -> ConcatMaker:
    """Makers of the splits, which share no line.

    Args:
        unseen: font family that only heldout uses.
        excluded: lines that no split contains.
    """
    makers = []
    training_faces = [face for face in faces if face.family != unseen]
    for split, count in zip(SPLITS, counts, strict=True):
        split_faces = faces if split == "heldout" else training_faces
        maker = LineMaker(split, seed, texts[split], split_faces, style, excluded, unseen)
        makers.append(maker)
        if split != "train":
            excluded |= {maker.text(number) for number in range(count)}
    return ConcatMaker(tuple(makers), counts)


def label_lines(file: Path) -> list[str]:
    """Lines of the labels of a file of records."""
    return [line for record in read_json_lines(file) for line in record["conversations"][-1]["value"].split("\n")]


def fraction(argument: str) -> float:
    """Option type: a number from 0 to 1."""
    try:
        value = float(argument)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {argument!r}")
    return value


def main(argv: list[str] | None = None) -> None:
    parser = generation_parser(__doc__, "lines", preview=40)
    parser.add_argument("--text", type=Path, help="folder of .txt and .md files; default: Python's documentation")
    add_fonts_option(parser, SHIPPED)
    parser.add_argument("--unseen-family", default="DejaVu Serif", help="font family that only held-out lines use")
    add_count_option(parser, "training images", default=50_000)
    parser.add_argument("--dev", type=positive, default=500, help="number of dev lines")
    parser.add_argument("--heldout", type=positive, default=500, help="number of held-out lines")
    parser.add_argument("--characters", type=positive, default=24, help="maximum characters of a line")
    parser.add_argument("--width", type=positive, default=256, help="width of a line slot in pixels")
    parser.add_argument("--height", type=positive, default=32, help="height of a line slot in pixels")
    parser.add_argument(
        "--rows", type=positive, default=1, help="line slots of an image; training images fill 1 to all of them"
    )
    parser.add_argument("--avoid", type=Path, action="append", default=[], help="records whose lines are excluded")
    parser.add_argument(
        "--freedom",
        type=fraction,
        default=1.0,
        help="0: black on white at the left; 1: random size, position, shades",
    )
    add_prompt_option(parser)
    arguments = parser.parse_args(argv)
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
        [paragraph.text for paragraph in open_texts(arguments.text).paragraphs()]
        if arguments.text
        else english_corpus.paragraphs()
    )
    splits = split_texts(texts)
    if not all(splits.values()):
        raise UserError(f"{len(texts)} paragraphs are too few for three splits; give more --text")
    style = LineStyle(
        (arguments.width, arguments.height), arguments.characters, arguments.prompt, arguments.freedom, arguments.rows
    )
    counts = (arguments.heldout, arguments.dev, arguments.count)
    excluded = frozenset(line for file in arguments.avoid for line in label_lines(file))
    make = plan_splits(splits, faces, arguments.unseen_family, style, counts, arguments.seed, excluded)
    plan = {
        "program": "make_lines",
        "seed": arguments.seed,
        "counts": counts,
        "style": asdict(style),
        "unseen_family": arguments.unseen_family,
        "fonts": digest(faces),
        "avoided": hashlib.sha256("\n".join(sorted(excluded)).encode()).hexdigest(),
        "texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
    }
    written = generate_dataset(make, len(make), arguments.out, plan, arguments.workers, chunk_size=1000)
    print_preview(arguments, "heldout", cell=min(max(style.size[0], 160), 320), columns=4, lines=2)
    print(f"{arguments.out}: " + ", ".join(f"{written[split]:,} in {split}.jsonl" for split in SPLITS))


if __name__ == "__main__":
    main()
