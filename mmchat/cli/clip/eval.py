"""`mmchat clip eval`: zero-shot classification of labelled images, or retrieval of captions and images."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmchat.cli.clip.label_options import add_label_options, read_labels, read_prompts
from mmchat.cli.clip.sources import check_dual_encoder
from mmchat.command_line.options import LABELLED_IMAGES, add_batch_size, add_clip_directory
from mmchat.command_line.quick_imports import quick_imports
from mmchat.errors import UserError
from mmchat.files import shown, write_json, write_json_lines

if TYPE_CHECKING:
    from rich.table import Table

    from mmchat.data.labelled_images import LabelledImages
    from mmchat.evaluation.metrics import Interval
    from mmchat.evaluation.zero_shot import ZeroShotResult

EXAMPLE = 'mmchat clip eval runs/quickstart/tower/model data/quickstart/named.json --prompts "{}"'
DETAILS = """With --out it writes
  scores.json      every score with its 95 % interval
  confusion.png    the confusion matrix (zero-shot only)
  mistakes.jsonl   the images that were classified wrongly (zero-shot only)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(DETAILS)
    add_clip_directory(parser)
    parser.add_argument("data", metavar="DATA", help=LABELLED_IMAGES)
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder of a table's images; default: that of the table"
    )
    add_label_options(parser)
    add_batch_size(parser, 32)
    parser.add_argument(
        "--retrieval",
        action="store_true",
        help="DATA has captions: recall@1, 5 and 10 from text to image and from image to text",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write")


def run(arguments: argparse.Namespace) -> None:
    (run_retrieval if arguments.retrieval else run_zero_shot)(arguments)


def run_retrieval(arguments: argparse.Namespace) -> None:
    from mmchat.data.sources import open_source

    label_options = ("labels", "labels_file", "prompts", "ensemble")
    for option, value in vars(arguments).items():
        if option in label_options and value:
            raise UserError(f"--{option.replace('_', '-')} is for classes; --retrieval compares captions as they are")
    check_dual_encoder(arguments.checkpoint)
    source = open_source(arguments.data, arguments.image_root)
    with quick_imports():  # mistakes have been found
        from mmchat.contrastive.embedding import Embedder
        from mmchat.evaluation.metrics import flatten_intervals
        from mmchat.evaluation.retrieval import retrieve
        from mmchat.terminal import PlainConsole
    figures = retrieve(Embedder.open(arguments.checkpoint, arguments.truncate), source, arguments.batch_size)
    PlainConsole().print(figures_table("retrieval", figures))
    if arguments.out:
        write_json(arguments.out / "scores.json", flatten_intervals(figures))
        print(arguments.out / "scores.json")


def run_zero_shot(arguments: argparse.Namespace) -> None:
    prompts = read_prompts(arguments)
    from mmchat.data.labelled_images import read_labelled

    check_dual_encoder(arguments.checkpoint)
    data = read_labelled(arguments.data, arguments.image_root, read_labels(arguments))
    with quick_imports():  # mistakes have been found
        from mmchat.contrastive.embedding import Embedder
        from mmchat.evaluation.zero_shot import classify_labelled
        from mmchat.terminal import PlainConsole
    embedder = Embedder.open(arguments.checkpoint, arguments.truncate)
    result = classify_labelled(embedder, data, prompts, arguments.batch_size)
    title = f"zero-shot, {len(data.images):,} images, {len(data.classes):,} classes"
    PlainConsole().print(classes_table(result), figures_table(title, result.figures()), sep="\n")
    if arguments.out:
        for path in write_result(arguments.out, data, result):
            print(path)


def write_result(out: Path, data: "LabelledImages", result: "ZeroShotResult") -> list[Path]:
    """Write scores, confusion matrix and mistakes; returns the files."""
    from mmchat.evaluation.confusion import draw_confusion

    scores, confusion, mistakes = out / "scores.json", out / "confusion.png", out / "mistakes.jsonl"
    write_json(scores, result.flat())
    draw_confusion(result.confusion(), result.classes, confusion)
    predictions = zip(data.images, data.targets, result.predicted, result.confidences.tolist(), strict=True)
    write_json_lines(
        mistakes,
        [
            {
                "image": shown(image.name),
                "truth": data.classes[truth],
                "taken_for": data.classes[predicted],
                "probability": probability,
            }
            for image, truth, predicted, probability in predictions
            if truth != predicted
        ],
    )
    return [scores, confusion, mistakes]


def classes_table(result: "ZeroShotResult") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="top-1 of each class, %", title_justify="left")
    table.add_column("class", overflow="fold")
    for name in ("images", "top-1"):
        table.add_column(name, justify="right")
    for name, count, share in result.per_class():
        table.add_row(Text(name), str(count), "-" if share is None else f"{100 * share:.1f}")
    return table


def figures_table(title: str, figures: "dict[str, tuple[float, Interval]]") -> "Table":
    from rich.table import Table

    table = Table(title=f"{title}, %", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, (value, (low, high)) in figures.items():
        table.add_row(name.replace("_", " "), f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
    return table
