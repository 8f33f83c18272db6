"""Draw charts of tables, invented ones or your own, with the table as what they say.

    python data_tools/make_charts.py --out data/charts --count 5000
    python data_tools/make_charts.py --out data/charts --count 5000 --tables csvs

    OUT/tables.jsonl     asks for the table, in Vary's dictionary style
    OUT/questions.jsonl  asks about it: values, the largest, differences

A .csv has names in its first column and numbers in the others, with a head; its title is the file's name.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from synthetic.charts import ChartMaker
from synthetic.fonts import FONTS_HELP, SHIPPED, digest, find_faces
from synthetic.generate import generate_dataset
from synthetic.preview import write_preview
from synthetic.tables import read_tables

from mmchat.command_line.arguments import HelpFormatter, OneLineParser, positive
from mmchat.command_line.errors import reporting


def main(words: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--tables", type=Path, help="folder of .csv; not given: invented tables")
    parser.add_argument("--count", type=positive, default=1000, help="charts")
    parser.add_argument("--questions", type=int, default=2, help="about each chart, at most")
    parser.add_argument("--width", type=positive, default=640, help="of an image, in pixels")
    parser.add_argument("--height", type=positive, default=480, help="of an image, in pixels")
    parser.add_argument("--fonts", nargs="+", default=[SHIPPED], metavar="PLACE", help=FONTS_HELP)
    parser.add_argument("--seed", type=int, default=0, help="another seed, other charts")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--preview", type=int, default=12, help="charts on the sheet preview.png; 0 makes none")
    arguments = parser.parse_args(words)
    with reporting():
        make_charts(arguments)


def make_charts(arguments: argparse.Namespace) -> None:
    tables = read_tables(arguments.tables) if arguments.tables else []
    faces = find_faces(arguments.fonts)
    size = (arguments.width, arguments.height)
    make = ChartMaker(arguments.seed, tables, faces, size, arguments.questions)
    plan = {
        "program": "make_charts",
        "seed": arguments.seed,
        "size": size,
        "questions": arguments.questions,
        "fonts": digest(faces),
        "tables": [asdict(table) for table in tables],
    }
    written = generate_dataset(make, arguments.count, arguments.out, plan, arguments.workers)
    if arguments.preview:
        print(f"look at {write_preview(arguments.out / 'tables.jsonl', arguments.preview, 400, columns=3, lines=4)}")
    print(f"{arguments.out}: " + ", ".join(f"{count:,} in {name}.jsonl" for name, count in written.items()))


if __name__ == "__main__":
    main()
