"""`mmchat clip classify`: which of the given labels an image shows."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmchat.cli.clip.label_options import add_label_options, read_labels, read_prompts
from mmchat.cli.clip.sources import check_dual_encoder
from mmchat.command_line.arguments import positive
from mmchat.command_line.options import add_batch_size, add_clip_directory
from mmchat.command_line.quick_imports import quick_imports
from mmchat.errors import UserError
from mmchat.files import shown
from mmchat.images import find_images, load_image

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

EXAMPLE = "mmchat clip classify runs/clip/model photo.jpg --labels cat,dog,bird --top 3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_clip_directory(parser)
    parser.add_argument(
        "paths", metavar="PATH", type=Path, nargs="+", help="images, or folders, which are searched recursively"
    )
    add_label_options(parser)
    add_batch_size(parser, 32)
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="labels to print per image")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image instead of tables")


def run(arguments: argparse.Namespace) -> None:
    files = find_images(arguments.paths)
    names = read_labels(arguments)
    if names is None:
        raise UserError("which labels? name them with --labels a,b,c or --labels-file FILE")
    prompts = read_prompts(arguments)
    check_dual_encoder(arguments.checkpoint)
    with quick_imports():  # mistakes have been found
        from mmchat.contrastive.embedding import Embedder
        from mmchat.evaluation.zero_shot import batched, class_embeddings, probabilities
    embedder = Embedder.open(arguments.checkpoint, arguments.truncate)
    classes = class_embeddings(embedder, names.names, prompts)
    unreadable = 0
    for batch in batched(files, arguments.batch_size):
        images, problems = {}, {}
        for file in batch:
            try:
                images[file] = load_image(file)
            except UserError as error:
                problems[file] = shown(str(error))
        rows = probabilities(embedder.images(list(images.values())), classes, embedder.scale) if images else []
        best = {file: top_labels(row, names.names, arguments.top) for file, row in zip(images, rows, strict=True)}
        unreadable += len(problems)
        for file in batch:
            print_answer(file, best.get(file, []), problems.get(file), arguments.json)
    if unreadable == len(files):
        raise UserError("none of the images could be read")
    if unreadable:
        print(f"{unreadable} of {len(files)} images could not be read", file=sys.stderr)


def top_labels(probabilities: "np.ndarray", labels: tuple[str, ...], count: int) -> list[tuple[str, float]]:
    """The most probable labels of one image, from float[C]."""
    return [(labels[i], float(probabilities[i])) for i in (-probabilities).argsort(kind="stable")[:count]]


def print_answer(file: Path, best: list[tuple[str, float]], problem: str | None, as_json: bool) -> None:
    """The labels of one image, or why it could not be read."""
    if as_json:
        answer = {"labels": dict(best)} if problem is None else {"error": problem}
        print(json.dumps({"path": shown(file), **answer}, ensure_ascii=False))
    elif problem is None:
        from mmchat.terminal import PlainConsole

        print(shown(file))
        PlainConsole(highlight=False).print(labels_table(best))
    else:
        print(problem, file=sys.stderr)


def labels_table(best: list[tuple[str, float]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    for label, share in best:
        table.add_row(Text(label), f"{share:.1%}", "█" * round(24 * share))
    return table
