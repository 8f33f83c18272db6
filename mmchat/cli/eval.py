"""`mmchat eval`: score a model on questions with known answers."""

import argparse
from pathlib import Path

from mmchat.files import write_json, write_json_lines


def add_commands(add) -> None:
    command = add(
        "eval",
        "ask every question of a file and score exact match per kind, with the blind score beside it",
        "mmchat eval runs/quickstart/model data/quickstart/heldout.json --out runs/quickstart",
    )
    command.add_argument("checkpoint", metavar="CKPT", type=Path, help="model directory")
    command.add_argument("data", metavar="FILE", type=Path, help="LLaVA .json or .jsonl; `kinds` groups the questions")
    command.add_argument("--image-root", type=Path, help="folder of the images; not given: the file's own")
    command.add_argument("--out", type=Path, help="folder for scores.json and predictions.jsonl")
    command.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a score beside exact match; repeat for several: ned, bleu, f1, anls, relaxed_accuracy, scrm_slight and "
        "others (docs/guides/scores.md)",
    )
    command.add_argument(
        "--blind",
        choices=("swapped", "blank"),
        default="swapped",
        help="what the blind score looks at: the others' images, or white ones",
    )
    command.add_argument("--batch-size", type=int, default=32, help="questions per forward")
    command.add_argument("--max-new-tokens", type=int, default=64, help="longest answer")
    command.set_defaults(run=run_eval)


def run_eval(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from mmchat.evaluation.questions import evaluate, read_questions
    from mmchat.evaluation.report import score_table
    from mmchat.evaluation.scores import check, flat, measure, metric_table
    from mmchat.inference.generator import Generator

    questions = read_questions(arguments.data, arguments.image_root or arguments.data.parent)
    check(arguments.metric, questions)
    result = evaluate(
        Generator(arguments.checkpoint), questions, arguments.batch_size, arguments.max_new_tokens, arguments.blind
    )
    scores = measure(arguments.metric, questions, result.predictions, result.blind)
    Console().print(score_table(result, arguments.blind))
    if scores:
        Console().print(metric_table(scores, arguments.blind))
    if arguments.out:
        write_json(arguments.out / "scores.json", {"blind_by": arguments.blind} | result.flat() | flat(scores))
        lines = [
            {"image": q.image.name, "kind": q.kind, "question": q.text, "answer": p, "truth": q.answer}
            for q, p in zip(questions, result.predictions, strict=True)
        ]
        write_json_lines(arguments.out / "predictions.jsonl", lines)
        print(f"{arguments.out / 'scores.json'}\n{arguments.out / 'predictions.jsonl'}")
