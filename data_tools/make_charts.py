"""Draw charts of random tables or of your own, with the table as the label.

    python data_tools/make_charts.py --out data/charts --count 5000
    python data_tools/make_charts.py --out data/charts --count 5000 --tables csvs

    OUT/tables.jsonl     asks for the table, as a dictionary in Vary's format
    OUT/questions.jsonl  asks for values, extremes and differences

A .csv has a header row, names in its first column and numbers in the others. The file name is the title of its chart.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from synthetic.charts import ChartMaker
from synthetic.fonts import SHIPPED, digest, find_faces
from synthetic.generate import generate_dataset
from synthetic.options import add_count_option, add_fonts_option, generation_parser, print_preview
from synthetic.tables import read_tables

from mmchat.command_line.arguments import positive
from mmchat.command_line.errors import reporting


def main(argv: list[str] | None = None) -> None:
    parser = generation_parser(__doc__, "charts", preview=12)
    parser.add_argument("--tables", type=Path, help="folder of .csv files; default: random tables")
    add_count_option(parser, "charts")
    parser.add_argument("--questions", type=int, default=2, help="maximum questions about each chart")
    parser.add_argument("--width", type=positive, default=640, help="image width in pixels")
    parser.add_argument("--height", type=positive, default=480, help="image height in pixels")
    add_fonts_option(parser, SHIPPED)
    arguments = parser.parse_args(argv)
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
    print_preview(arguments, "tables", cell=400, columns=3, lines=4)
    print(f"{arguments.out}: " + ", ".join(f"{count:,} in {name}.jsonl" for name, count in written.items()))


if __name__ == "__main__":
    main()
