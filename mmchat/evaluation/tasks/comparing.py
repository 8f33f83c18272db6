"""Two models on one task: paired differences, and the questions about which they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmchat.errors import UserError
from mmchat.evaluation.metrics import Interval, middle_95
from mmchat.evaluation.tasks.answer_files import Answered, Answers
from mmchat.evaluation.tasks.definition import TaskConfig
from mmchat.evaluation.tasks.resampling import by_image, resampled
from mmchat.evaluation.tasks.samples import Sample
from mmchat.evaluation.tasks.scorers import SCORERS, Scorer
from mmchat.evaluation.tasks.scoring import places_by, read_all

SAME = 1e-9
"""Scores of an answer that differ by less are the same."""


@dataclass(frozen=True)
class Difference:
    """A figure of both, and the second minus the first with its interval."""

    first: float
    second: float
    difference: float
    interval: Interval
    questions: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        low, high = self.interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class Comparison:
    """A task of two models.

    Attributes:
        figures, parts: As in `TaskScore`.
        samples: The questions.
        answers: Those of the first and of the second, in this order.
        reads: What was read from the answers of the first and of the second.
        rights: float[2, N], how right each answer is.
    """

    scorer: Scorer
    figures: Mapping[str, Difference]
    parts: Mapping[str, Mapping[str, Difference]]
    samples: Sequence[Sample]
    answers: tuple[Sequence[Answered], Sequence[Answered]]
    reads: tuple[Sequence[str], Sequence[str]]
    rights: np.ndarray

    @property
    def better(self) -> tuple[list[int], list[int]]:
        """The questions that the first answers better, and those that the second does; the clearest first."""
        gain = self.rights[1] - self.rights[0]
        order = np.argsort(-np.abs(gain), kind="stable").tolist()
        return [row for row in order if gain[row] < -SAME], [row for row in order if gain[row] > SAME]

    def flat(self) -> dict[str, Any]:
        """Name -> value, for a JSON file."""
        first, second = self.better
        flat: dict[str, Any] = {
            "questions": len(self.samples),
            "first_better": len(first),
            "second_better": len(second),
        }
        inner = {f"{field}/{value}": one for field, values in self.parts.items() for value, one in values.items()}
        for name, one in {**self.figures, **inner}.items():
            low, high = one.interval
            flat |= {f"{name}/first": one.first, f"{name}/second": one.second, f"{name}/difference": one.difference}
            flat |= {f"{name}/low": low, f"{name}/high": high, f"{name}/questions": one.questions}
        return flat


def compare(task: TaskConfig, first: Answers, second: Answers) -> Comparison:
    """Compare the answers of two models to the same questions.

    Raises:
        UserError: They answer other questions.
    """
    samples = first.samples
    _refuse_other_questions(samples, second.samples)
    order = {sample.id: row for row, sample in enumerate(second.samples)}
    own = (first.own, [second.own[order[sample.id]] for sample in samples])
    scorer = SCORERS[task.score]
    one, other = (read_all(task, samples, answers) for answers in own)
    sums = (scorer.sums(samples, one), scorer.sums(samples, other))
    parts: dict[str, dict[str, Difference]] = {}
    for field in task.by:
        for value, places in places_by(samples, field).items():
            chosen = [samples[place] for place in places]
            found = _differences(scorer, chosen, (sums[0][places], sums[1][places]))[scorer.of_part]
            parts.setdefault(field, {})[value] = found
    rights = np.stack([scorer.right(each) for each in sums])
    return Comparison(scorer, _differences(scorer, samples, sums), parts, samples, own, (one, other), rights)


def _differences(
    scorer: Scorer, samples: Sequence[Sample], sums: tuple[np.ndarray, np.ndarray]
) -> dict[str, Difference]:
    """Both are scored on the same samples of images, so what images have in common cancels."""
    images = [sample.image for sample in samples]
    totals = [scorer.figures(each.sum(axis=0)) for each in sums]
    drawn = [[scorer.figures(total) for total in resampled(by_image(each, images))] for each in sums]
    found = {}
    for name, value in totals[0].items():
        gaps = [after[name] - before[name] for before, after in zip(*drawn, strict=True)]
        change = totals[1][name] - value
        found[name] = Difference(value, totals[1][name], change, middle_95(gaps), len(samples))
    return found


def _refuse_other_questions(first: Sequence[Sample], second: Sequence[Sample]) -> None:
    one = {sample.id: (sample.question, sample.answers) for sample in first}
    other = {sample.id: (sample.question, sample.answers) for sample in second}
    if one == other:
        return
    missing = sorted(one.keys() ^ other.keys())
    different = next((name for name in one if name in other and one[name] != other[name]), None)
    what = f"question {missing[0]!r} is in one of them only" if missing else f"question {different!r} differs"
    raise UserError(
        f"the files answer other questions, {len(first):,} and {len(second):,}: {what}; evaluate both on the same data"
    )
