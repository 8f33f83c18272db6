"""Draw a small labelled subset with equally many images of each class, for experiments with few labels.

    python data_tools/labelled_subset.py data/digits/train --count 15 --seed 0 --out few.jsonl

The output table has image paths and labels; use the data folder as its `image_root`. If --count is not a multiple of
the number of classes, the classes that get one image more are drawn at random.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mmchat.command_line.arguments import HelpFormatter
from mmchat.command_line.errors import reporting
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.files import write_json_lines


def labelled_subset(rows: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` random rows, equally many of each label (or one more), in the order of the data.

    Raises:
        UserError: a label has too few rows.
    """
    draw = np.random.default_rng(seed)
    classes, labels = np.unique([row["label"] for row in rows], return_inverse=True)
    per_class, remainder = divmod(count, len(classes))
    with_one_more = draw.choice(len(classes), remainder, replace=False)
    chosen: list[int] = []
    for label, name in enumerate(classes.tolist()):
        members, required = np.flatnonzero(labels == label), per_class + (label in with_one_more)
        if len(members) < required:
            raise UserError(f"{required} of {name!r} are needed, but there are {len(members)}; lower --count")
        chosen += draw.choice(members, required, replace=False).tolist()
    return [rows[number] for number in sorted(chosen)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one folder of images per class")
    parser.add_argument("--count", type=int, required=True, help="total number of images")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl table to write")
    arguments = parser.parse_args(argv)
    table = open_source(arguments.data).table
    # An image's id is its path below the folder.
    rows = [row | {"image": row["id"]} for row in (table.row(number)[1] for number in range(len(table)))]
    chosen = labelled_subset(rows, arguments.count, arguments.seed)
    write_json_lines(arguments.out, chosen)
    print(f"{arguments.out}: {len(chosen)} images")


if __name__ == "__main__":
    with reporting():
        main()
