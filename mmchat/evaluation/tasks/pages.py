"""Pages to look at: a task with its failures, and two models side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from mmchat.errors import UserError
from mmchat.evaluation.tasks.answer_files import Answered, Answers
from mmchat.evaluation.tasks.comparing import Comparison
from mmchat.evaluation.tasks.prompts import lettered
from mmchat.evaluation.tasks.samples import Sample
from mmchat.evaluation.tasks.scoring import TaskScore
from mmchat.evaluation.tasks.tables import cells, columns, difference_cells, notes
from mmchat.html import render
from mmchat.images import data_uri

IMAGE_SIDE = 256
"""Largest side of an image, in pixels."""
LONGEST_TEXT = 600
"""Characters of a question or an answer."""
SHOWN = 48
"""Most failures, and most differences to either side."""
RIGHT = 0.5
"""From here on an answer counts as right in the list of failures."""
HIGHER_IS_BETTER = ("bleu", "meteor", "precision", "recall", "f1")
"""Figures of page reading for which more is better. For the edit distance less is."""
NEUTRAL = ("yes_share",)
"""Figures that are neither better nor worse."""
ImageOf = Callable[[Sample], Any]
"""The image of a sample, or None if it is not at hand."""


def task_page(name: str, title: str, score: TaskScore, answers: Answers, image_of: ImageOf) -> str:
    """A page with the table of a task and answers that are wrong, evenly spaced over them."""
    wrong = [row for row, right in enumerate(score.right) if right < RIGHT]
    return render(
        "task_report.html",
        name=name,
        title=title,
        lines=notes(score),
        head=["model", "95 % interval", *columns(score), "questions"],
        sections=[("", [_row(score, *pair) for pair in score.figures.items()])]
        + [
            (f"{score.scorer.of_part} by {field}", [_row(score, *pair) for pair in parts.items()])
            for field, parts in score.parts.items()
        ],
        wrong=len(wrong),
        questions=score.questions,
        cells=[
            _cell(answers.samples[row], image_of)
            | {"answers": [_said("", answers.own[row], score.read[row], float(score.right[row]))]}
            for row in _spread(wrong, SHOWN)
        ],
    )


def comparison_page(
    title: str,
    names: tuple[str, str],
    comparisons: Sequence[tuple[str, Comparison]],
    image_of: ImageOf,
) -> str:
    """A page with the differences of two models and, side by side, the answers that one gives better."""
    return render(
        "task_comparison.html",
        title=title,
        names=names,
        tasks=[
            {
                "name": name,
                "description": one.scorer.description,
                "sections": [("", _differences(one, one.figures))]
                + [
                    (f"{one.scorer.of_part} by {field}", _differences(one, parts)) for field, parts in one.parts.items()
                ],
                "questions": len(one.samples),
                "sides": [
                    {
                        "count": len(better),
                        "name": names[side],
                        "cells": [_both(one, row, names, image_of) for row in better[:SHOWN]],
                    }
                    for side, better in enumerate(one.better)
                ],
            }
            for name, one in comparisons
        ],
    )


def _row(score: TaskScore, name: str, figure: Any) -> list[str]:
    return [name, *cells(score.scorer, figure, score)]


def _differences(one: Comparison, figures: Any) -> list[dict[str, Any]]:
    rows = []
    for name, found in figures.items():
        lower_is_better = one.scorer.lower_is_better and name not in HIGHER_IS_BETTER
        better = (found.difference > 0) != lower_is_better
        kind = "" if not found.is_clear or name in NEUTRAL else "right" if better else "wrong"
        rows.append({"name": name, "cells": difference_cells(one.scorer, found), "kind": kind})
    return rows


def _both(one: Comparison, row: int, names: tuple[str, str], image_of: ImageOf) -> dict[str, Any]:
    said = [
        _said(name, one.answers[side][row], one.reads[side][row], float(one.rights[side][row]))
        for side, name in enumerate(names)
    ]
    return _cell(one.samples[row], image_of) | {"answers": said}


def _cell(sample: Sample, image_of: ImageOf) -> dict[str, Any]:
    try:
        image = image_of(sample)
    except UserError:  # its answer says what is wrong with it
        image = None
    right = list(dict.fromkeys(sample.answers))
    return {
        "id": sample.id,
        "uri": None if image is None else data_uri(image, IMAGE_SIDE),
        "question": _cut(sample.question),
        "options": lettered(sample.options),
        "truth": _cut(", ".join(right[:5]) + (" ..." if len(right) > 5 else "")),
    }


def _said(name: str, answer: Answered, read: str, right: float) -> dict[str, Any]:
    return {
        "name": name,
        "text": _cut(answer.text),
        "read": "" if read.lower() == answer.text.strip().lower() else read or "nothing",
        "why": answer.error or {"length": "cut", "repetition": "looping"}.get(answer.stopped or "", ""),
        "right": right >= RIGHT,
        "score": f"{100 * right:.0f}",
    }


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """So many rows, evenly spaced, so that they are not those of the first images only."""
    step = max(1, len(rows) / count)
    return [rows[int(number * step)] for number in range(min(count, len(rows)))]
