"""`mmchat eval score`: score answers to a task without the model, also those of other programs."""

import argparse
from pathlib import Path

from mmchat.command_line.arguments import positive

EXAMPLE = "mmchat eval score runs/sft/pope.answers.jsonl --task pope --out runs/sft"
DETAILS = """A file of `mmchat eval --task` holds its questions and right answers. For a file of another program name
the benchmark's data too; lines need an id (id, question_id, questionId or index) and an answer (answer, text,
prediction or caption)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(DETAILS)
    parser.add_argument("answers", metavar="ANSWERS", type=Path, help=".jsonl, .json, .csv, .tsv or .parquet")
    parser.add_argument("--task", required=True, metavar="NAME", help="a name, or a task file (.yaml) of your own")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="the benchmark, as published; default: what ANSWERS hold",
    )
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="folder of images; default: that of the data")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write TASK.scores.json and TASK.html")
    parser.add_argument("--limit", type=positive, metavar="N", help="score the first N questions of the data only")
    parser.add_argument(
        "--allow-missing", action="store_true", help="questions without an answer count as answered with an empty text"
    )


def run(arguments: argparse.Namespace) -> None:
    from mmchat.cli.eval_task import print_score
    from mmchat.evaluation.tasks.answer_files import read_answers
    from mmchat.evaluation.tasks.definition import open_task
    from mmchat.evaluation.tasks.reading import TaskData

    name, task = open_task(arguments.task)
    samples, image_of = None, lambda sample: None
    if arguments.data:
        data = TaskData(task, arguments.data, arguments.image_root)
        samples, image_of = data.first(arguments.limit), data.open_image
    answers = read_answers(arguments.answers, samples, arguments.allow_missing, arguments.limit is not None)
    print_score(name, task, answers, arguments.out, image_of)
