"""`mmchat eval --task`: answer the questions of a named benchmark, and score them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmchat.cli.job_options import claim_output, open_engine, saying_how_to_resume, writing
from mmchat.errors import UserError
from mmchat.files import write_json, write_text

if TYPE_CHECKING:
    from mmchat.evaluation.tasks.answer_files import Answers
    from mmchat.evaluation.tasks.definition import TaskConfig
    from mmchat.evaluation.tasks.pages import ImageOf


def run_task(arguments: argparse.Namespace) -> None:
    from mmchat.evaluation.tasks.answer_files import read_answers
    from mmchat.evaluation.tasks.answering import ANSWERING, AnswerTask, Asking, content_of
    from mmchat.evaluation.tasks.definition import as_plain, open_task
    from mmchat.evaluation.tasks.reading import TaskData
    from mmchat.inference.jobs.job import run_job

    if arguments.out is None:
        raise UserError("--task needs --out DIR, where answers are kept")
    for option in ("metric", "card"):
        if getattr(arguments, option):
            raise UserError(f"--{option} goes with questions of your own, not with --task")
    name, task = open_task(arguments.task)
    data = TaskData(task, arguments.data, arguments.image_root)
    if data.left_out:
        print(f"{data.left_out:,} rows without an image are left out", file=sys.stderr)
    samples = data.first(arguments.limit)
    asking = Asking(task, data, samples, arguments.blind)
    journal = arguments.out / f"{name}.answers.jsonl"
    made_by = as_plain(task) | {"choose": arguments.choose, "data": content_of(data.samples)}
    made_by["max_new_tokens"] = arguments.max_new_tokens or task.max_new_tokens
    origin = claim_output(arguments, journal, made_by)
    job = AnswerTask(made_by["max_new_tokens"], arguments.choose)
    with (
        saying_how_to_resume(journal),
        open_engine(argparse.Namespace(**vars(arguments), engine="mmchat"), job, journal) as engine,
        writing(arguments, journal, origin),
    ):
        summary = run_job(ANSWERING, asking, journal, engine, lambda: len(asking))
    print(f"{summary.done:,} answers, {summary.failed:,} failed, {summary.skipped:,} were there before: {journal}")
    if not all(sample.answers for sample in samples):
        print("the data hold no right answers, as those of a test split, so there is no score")
        return
    answers = read_answers(journal, samples, data_is_larger=True)
    print_score(name, task, answers, arguments.out, data.open_image)


def print_score(
    name: str, task: "TaskConfig", answers: "Answers", out: Path | None, image_of: "ImageOf" = lambda sample: None
) -> None:
    """Print the table of a task, and write it next to its answers, with a page of wrong answers."""
    from mmchat.evaluation.tasks.pages import task_page
    from mmchat.evaluation.tasks.scoring import score_task
    from mmchat.evaluation.tasks.tables import notes, task_table
    from mmchat.terminal import PlainConsole

    score = score_task(task, answers)
    PlainConsole().print(task_table(f"{name}: {task.title}", score))
    print("\n".join(notes(score)))
    if out is not None:
        write_json(out / f"{name}.scores.json", {"task": name} | score.flat())
        write_text(out / f"{name}.html", task_page(name, task.title, score, answers, image_of))
        print(f"{out / f'{name}.scores.json'}\n{out / f'{name}.html'}")
