"""`predictions.jsonl`, which `mmchat eval` without a task writes, as answers to a task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.evaluation.tasks.answer_files import Answered, Answers
from mmchat.evaluation.tasks.definition import LayoutConfig, TaskConfig
from mmchat.evaluation.tasks.samples import Sample
from mmchat.files import read_json_lines

NAME = "questions"
CLOSED = TaskConfig(
    title="questions of your own, exact match",
    follows="mmchat eval without --task",
    layouts=[LayoutConfig(name="predictions.jsonl", fields={"kind": "kind"})],
    prompt="{question}",
    score="exact",
    by=["kind"],
)


def read_predictions(path: Path) -> Answers:
    """The answers of a predictions.jsonl.

    Raises:
        UserError: It does not exist, or holds something else.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        rows = read_json_lines(path)
        samples = [_sample(row, number) for number, row in enumerate(rows)]
        answers = [Answered(row["answer"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a predictions.jsonl of `mmchat eval`: {error}") from None
    if not rows:
        raise UserError(f"{path} holds no answer")
    return Answers(samples, answers)


def _sample(row: Mapping[str, Any], number: int) -> Sample:
    return Sample(
        str(number), row["question"], (row["truth"],), (), {"kind": row["kind"]}, row["image"], number, str(number)
    )
