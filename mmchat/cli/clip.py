"""`mmchat clip classify` and `mmchat clip eval`: images put to classes that are told in words."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchat.command_line.arguments import positive
from mmchat.contrastive.prompts import GENERAL_PROMPTS, PROMPTS, check_prompts
from mmchat.data.labelled_images import ClassNames, parse_class_names, read_class_names, read_labelled
from mmchat.errors import UserError
from mmchat.files import shown, write_json, write_json_lines
from mmchat.images import find_images, load_image

if TYPE_CHECKING:
    from rich.table import Table

    from mmchat.evaluation.metrics import Interval
    from mmchat.evaluation.zero_shot import ZeroShotResult

WRITTEN = """With --out it writes, into that folder,
  scores.json      every figure with its 95 % interval
  confusion.png    what each class is taken for
  mistakes.jsonl   each image that was put to a wrong class
"""


def add_commands(add) -> None:
    classify = add(
        "clip classify",
        "say which of your labels each image shows, with probabilities",
        "mmchat clip classify runs/clip/model photo.jpg --labels cat,dog,bird --top 3",
    )
    classify.add_argument("checkpoint", metavar="CKPT", type=Path, help="directory of a dual encoder")
    classify.add_argument("paths", metavar="IMAGES", type=Path, nargs="+", help="images, or folders searched deeply")
    _add_labels(classify)
    classify.add_argument("--top", type=positive, default=5, help="so many labels of each image")
    classify.add_argument("--json", action="store_true", help="one JSON object an image instead of a table")
    classify.set_defaults(run=run_classify)

    evaluate = add(
        "clip eval",
        "zero-shot scores on labelled images, or how well captions and images find each other",
        "mmchat clip eval runs/clip/model data/test --out runs/clip/eval",
    )
    evaluate.description = f"{evaluate.description}\n\n{WRITTEN}"
    evaluate.add_argument("checkpoint", metavar="CKPT", type=Path, help="directory of a dual encoder")
    evaluate.add_argument(
        "data",
        metavar="DATA",
        help="a folder for each class, or a table (.csv, .jsonl, .parquet, ...) with a label column",
    )
    evaluate.add_argument("--image-root", type=Path, help="folder of a table's images; not given: the table's own")
    _add_labels(evaluate)
    evaluate.add_argument(
        "--retrieval", action="store_true", help="DATA has captions: recall@1, 5 and 10 from text to image and back"
    )
    evaluate.add_argument("--out", type=Path, help="folder to write")
    evaluate.set_defaults(run=run_eval)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", help="a,b,c")
    labels.add_argument(
        "--labels-file", type=Path, help="one label a line; or .json, what the data call a class: words for it"
    )
    parser.add_argument(
        "--prompts",
        action="append",
        metavar="TEXT",
        help='what is said of a label, {} in its place; repeat for an ensemble. Not given: "a photo of a {}."',
    )
    parser.add_argument("--ensemble", action="store_true", help="the seven general prompts of CLIP's authors")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long, which are errors else")
    parser.add_argument("--batch-size", type=positive, default=32, help="images per forward")


def run_classify(arguments: argparse.Namespace) -> None:
    files = find_images(arguments.paths)
    names = _names(arguments)
    if names is None:
        raise UserError("which labels? name them with --labels a,b,c or --labels-file FILE")
    prompts = _prompts(arguments)
    from rich.console import Console

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
        likely = probabilities(embedder.images(list(images.values())), classes, embedder.scale) if images else []
        found = dict(zip(images, likely, strict=True))
        unreadable += len(problems)
        for file in batch:
            best = [] if file in problems else _best(found[file], names.names, arguments.top)
            if arguments.json:
                line = {"error": problems[file]} if file in problems else {"labels": dict(best)}
                print(json.dumps({"path": shown(file), **line}, ensure_ascii=False))
            elif best:
                print(shown(file))
                Console(highlight=False).print(_labels_table(best))
            else:
                print(problems[file], file=sys.stderr)
    if unreadable == len(files):
        raise UserError("none of the images could be read")
    if unreadable:
        print(f"{unreadable} of {len(files)} images could not be read", file=sys.stderr)


def _best(likely: Any, words: tuple[str, ...], top: int) -> list[tuple[str, float]]:
    return [(words[i], float(likely[i])) for i in (-likely).argsort(kind="stable")[:top]]


def _labels_table(best: list[tuple[str, float]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    for label, share in best:
        table.add_row(Text(label), f"{share:.1%}", "█" * round(24 * share))
    return table


def run_eval(arguments: argparse.Namespace) -> None:
    (_run_retrieval if arguments.retrieval else _run_zero_shot)(arguments)


def _run_retrieval(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from mmchat.contrastive.embedding import Embedder
    from mmchat.data.sources import open_source
    from mmchat.evaluation.metrics import flatten_intervals
    from mmchat.evaluation.retrieval import retrieve

    for option in ("labels", "labels_file", "prompts", "ensemble"):
        if getattr(arguments, option):
            raise UserError(f"--{option.replace('_', '-')} is for classes; --retrieval compares captions as they are")
    source = open_source(arguments.data, arguments.image_root)
    figures = retrieve(Embedder.open(arguments.checkpoint, arguments.truncate), source, arguments.batch_size)
    Console().print(_figures_table("retrieval", figures))
    if arguments.out:
        write_json(arguments.out / "scores.json", flatten_intervals(figures))
        print(arguments.out / "scores.json")


def _run_zero_shot(arguments: argparse.Namespace) -> None:
    prompts = _prompts(arguments)
    data = read_labelled(arguments.data, arguments.image_root, _names(arguments))
    from rich.console import Console

    from mmchat.contrastive.embedding import Embedder
    from mmchat.evaluation.confusion import draw_confusion
    from mmchat.evaluation.zero_shot import classify_labelled

    embedder = Embedder.open(arguments.checkpoint, arguments.truncate)
    result = classify_labelled(embedder, data, prompts, arguments.batch_size)
    console = Console()
    title = f"zero-shot, {len(data.images):,} images, {len(data.classes):,} classes"
    console.print(_classes_table(result), _figures_table(title, result.figures()), sep="\n")
    if arguments.out:
        write_json(arguments.out / "scores.json", result.flat())
        draw_confusion(result.confusion(), result.classes, arguments.out / "confusion.png")
        write_json_lines(
            arguments.out / "mistakes.jsonl",
            [
                {
                    "image": shown(image.name),
                    "truth": data.classes[truth],
                    "taken_for": data.classes[guess],
                    "probability": p,
                }
                for image, truth, guess, p in zip(
                    data.images, data.targets, result.predicted, result.confidences.tolist(), strict=True
                )
                if truth != guess
            ],
        )
        for name in ("scores.json", "confusion.png", "mistakes.jsonl"):
            print(arguments.out / name)


def _classes_table(result: "ZeroShotResult") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="top-1 of each class, %", title_justify="left")
    table.add_column("class", overflow="fold")
    for name in ("images", "top-1"):
        table.add_column(name, justify="right")
    for name, count, share in result.per_class():
        table.add_row(Text(name), str(count), "-" if share is None else f"{100 * share:.1f}")
    return table


def _figures_table(title: str, figures: "dict[str, tuple[float, Interval]]") -> "Table":
    from rich.table import Table

    table = Table(title=f"{title}, %", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, (value, (low, high)) in figures.items():
        table.add_row(name.replace("_", " "), f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
    return table


def _names(arguments: argparse.Namespace) -> ClassNames | None:
    if arguments.labels is not None:
        return parse_class_names(arguments.labels.split(","), "--labels")
    return read_class_names(arguments.labels_file) if arguments.labels_file else None


def _prompts(arguments: argparse.Namespace) -> tuple[str, ...]:
    if arguments.ensemble and arguments.prompts:
        raise UserError("--ensemble is a set of prompts, and --prompts names others: give one of them")
    prompts = GENERAL_PROMPTS if arguments.ensemble else tuple(arguments.prompts or PROMPTS)
    check_prompts(prompts)
    return prompts
