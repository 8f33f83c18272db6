"""Draw a few labelled images, equally many of each class: what is left when labels are dear.

    python data_tools/labelled_subset.py data/digits/train --count 15 --seed 0 --out few.jsonl

The table names images and labels; whoever reads it names the folder of the data as `image_root`. Of classes with
unequal shares, as with 15 of ten, it is drawn which get one more.
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


def share(rows: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` of the rows, of each label as many or one more, in the order of the data.

    Raises:
        UserError: a label has too few rows.
    """
    draw = np.random.default_rng(seed)
    classes, labels = np.unique([row["label"] for row in rows], return_inverse=True)
    each, more = divmod(count, len(classes))
    favoured = draw.choice(len(classes), more, replace=False)
    chosen: list[int] = []
    for label, name in enumerate(classes.tolist()):
        numbers, wanted = np.flatnonzero(labels == label), each + (label in favoured)
        if len(numbers) < wanted:
            raise UserError(f"{wanted} of {name!r} are wanted, but there are {len(numbers)}; lower --count")
        chosen += draw.choice(numbers, wanted, replace=False).tolist()
    return [rows[number] for number in sorted(chosen)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of images for each class")
    parser.add_argument("--count", type=int, required=True, help="images in all")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--out", type=Path, required=True, help="table to write, .jsonl")
    args = parser.parse_args(argv)
    table = open_source(args.data).table
    chosen = share([table.row(number)[1] for number in range(len(table))], args.count, args.seed)
    write_json_lines(args.out, chosen)
    print(f"{args.out}: {len(chosen)} images")


if __name__ == "__main__":
    with reporting():
        main()
