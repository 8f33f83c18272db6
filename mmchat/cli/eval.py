"""`mmchat eval`: score an assistant on questions with known answers."""

import argparse
from pathlib import Path

from mmchat.command_line.options import (
    add_batch_size,
    add_max_new_tokens,
    add_model_directory,
    add_placement,
    placement,
)
from mmchat.command_line.quick_imports import quick_imports
from mmchat.files import write_json, write_json_lines
from mmchat.model_kinds import ASSISTANT
from mmchat.pretrained import part_of_run

EXAMPLE = "mmchat eval runs/quickstart/model data/quickstart/heldout.json --out runs/quickstart"
DETAILS = """The score is exact match per kind of question. Next to it is the blind score: the same questions
asked about wrong images, which shows how much can be guessed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details(DETAILS)
    add_model_directory(parser)
    parser.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        help="LLaVA .json or .jsonl; the key `kinds` of a record groups its questions",
    )
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="folder of the images; default: that of DATA")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write scores.json and predictions.jsonl")
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
        choices=("swapped", "blank"),
        default="swapped",
        help="images for the blind score: those of other questions, or white ones",
    )
    parser.add_argument("--card", action="store_true", help="also write the scores into the model's README.md")
    add_batch_size(parser, 32, "questions")
    add_max_new_tokens(parser, 64, "answer")
    add_placement(parser)


def run(arguments: argparse.Namespace) -> None:
    from mmchat.evaluation.questions import evaluate, read_questions
    from mmchat.evaluation.report import score_table
    from mmchat.evaluation.scores import check_metrics, flatten_scores, metric_table, score_answers
    from mmchat.terminal import PlainConsole

    questions = read_questions(arguments.data, arguments.image_root or arguments.data.parent)
    check_metrics(arguments.metric, questions)
    directory = ASSISTANT.check_complete(arguments.checkpoint)
    with quick_imports():  # mistakes have been found
        from mmchat.inference.engine import EngineSettings
        from mmchat.inference.generator import Generator
    settings = EngineSettings(slots=arguments.batch_size)
    with Generator(directory, **placement(arguments), settings=settings) as generator:
        result = evaluate(generator, questions, arguments.max_new_tokens, arguments.blind)
    scores = score_answers(arguments.metric, questions, result.predictions, result.blind)
    PlainConsole().print(score_table(result, arguments.blind))
    if scores:
        PlainConsole().print(metric_table(scores, arguments.blind))
    if arguments.card:
        from mmchat.model.card import write_scores

        directory = part_of_run(arguments.checkpoint)  # the model that was opened
        write_scores(directory, arguments.data.name, result.flat())
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
