"""`mmchat eval`: score an assistant on questions with known answers, or on a named benchmark."""

import argparse
import shlex
from pathlib import Path

from mmchat.cli.job_options import add_overwrite
from mmchat.command_line.arguments import positive
from mmchat.command_line.options import (
    add_batch_size,
    add_model_directory,
    add_placement,
    placement,
)
from mmchat.command_line.quick_imports import quick_imports
from mmchat.errors import UserError
from mmchat.files import write_json, write_json_lines
from mmchat.hub import RUN_CONFIG, part_of_run
from mmchat.model_kinds import ASSISTANT

EXAMPLE = "mmchat eval runs/quickstart/model data/quickstart/heldout.json --out runs/quickstart"
DETAILS = """Without --task the score is exact match per kind of question. Next to it is the blind score: the same
questions asked about wrong images, which shows how much can be guessed.

With --task the questions are those of a named benchmark or of a task file of your own; `mmchat eval tasks` lists the
names. Nothing is downloaded. Answers are kept in OUT/TASK.answers.jsonl; the same command resumes after an
interruption of any kind."""
MAX_NEW_TOKENS = 64
"""Of an answer without a task."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(DETAILS)
    add_model_directory(parser)
    parser.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        nargs="+",
        help="LLaVA .json or .jsonl; the key `kinds` of a record groups its questions. With --task: the benchmark's "
        "files or folder, as published",
    )
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="folder of the images; default: that of DATA")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write scores.json and predictions.jsonl; required with --task"
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="another score; repeat for several: ned, word_ned, bleu, meteor, precision, recall, f1, anls, "
        "relaxed_accuracy, scrm_strict, scrm_slight, scrm_high (docs/guides/scores.md)",
    )
    parser.add_argument(
        "--blind",
        choices=("swapped", "blank", "none"),
        default="swapped",
        help="images for the blind score: those of other questions, or white ones; none, with --task: no such score",
    )
    parser.add_argument("--card", action="store_true", help="also write the scores into the model's README.md")
    add_batch_size(parser, 32, "questions")
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help=f"longest answer, in tokens (default: {MAX_NEW_TOKENS}; with --task: what the task says)",
    )
    group = parser.add_argument_group("named benchmarks")
    group.add_argument("--task", metavar="NAME", help="a name, or a task file (.yaml) of your own")
    group.add_argument(
        "--choose",
        choices=("text", "likelihood"),
        default="text",
        help="multiple choice: read the letter from the answer, or take the most probable letter",
    )
    group.add_argument("--limit", type=positive, metavar="N", help="ask the first N questions only")
    group.add_argument(
        "--ranks", type=positive, default=1, metavar="N", help="processes, each with a model of its own, on its own GPU"
    )
    add_overwrite(group)
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.task is not None:
        from mmchat.cli.eval_task import run_task

        run_task(arguments)
        return
    needs_task = {
        "--ranks": arguments.ranks > 1,
        "--limit": arguments.limit is not None,
        "--choose": arguments.choose != "text",
        "--blind none": arguments.blind == "none",
        "--overwrite": arguments.overwrite,
        "more than one DATA": len(arguments.data) > 1,
    }
    if given := [name for name, is_given in needs_task.items() if is_given]:
        raise UserError(f"{given[0]} goes with --task NAME, which is not given")
    run_closed(arguments)


def run_closed(arguments: argparse.Namespace) -> None:
    """Questions of a LLaVA file, by exact match."""
    from mmchat.evaluation.questions import evaluate, read_questions
    from mmchat.evaluation.report import score_table
    from mmchat.evaluation.scores import check_metrics, flatten_scores, metric_table, score_answers
    from mmchat.terminal import PlainConsole

    (data,) = arguments.data
    questions = read_questions(data, arguments.image_root or data.parent)
    check_metrics(arguments.metric, questions)
    directory = ASSISTANT.check_complete(arguments.checkpoint)
    with quick_imports():  # mistakes have been found
        from mmchat.inference.engine import EngineSettings
        from mmchat.inference.generator import Generator
    settings = EngineSettings(slots=arguments.batch_size)
    with Generator(directory, **placement(arguments), settings=settings) as generator:
        result = evaluate(generator, questions, arguments.max_new_tokens or MAX_NEW_TOKENS, arguments.blind)
    scores = score_answers(arguments.metric, questions, result.predictions, result.blind)
    PlainConsole().print(score_table(result, arguments.blind))
    if scores:
        PlainConsole().print(metric_table(scores, arguments.blind))
    if arguments.card:
        from mmchat.model.card import write_scores

        directory = part_of_run(arguments.checkpoint)  # the model that was opened
        write_scores(directory, data.name, result.flat())
        print(directory / "README.md")
    if arguments.out:
        write_json(
            arguments.out / "scores.json", {"blind_by": arguments.blind} | result.flat() | flatten_scores(scores)
        )
        lines = [
            {"image": q.image.name, "kind": q.kind, "question": q.text, "answer": answer, "truth": q.answer}
            for q, answer in zip(questions, result.predictions, strict=True)
        ]
        write_json_lines(arguments.out / "predictions.jsonl", lines)
        print(f"{arguments.out / 'scores.json'}\n{arguments.out / 'predictions.jsonl'}")
        if (arguments.out / RUN_CONFIG).exists():
            print(f"next: mmchat report {shlex.quote(str(arguments.out))}")
