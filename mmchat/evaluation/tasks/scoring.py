"""The table of a task: figures with intervals, the blind score, what a guess would score, and how answers ended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmchat.errors import UserError
from mmchat.evaluation.metrics import Interval
from mmchat.evaluation.tasks.answer_files import Answered, Answers
from mmchat.evaluation.tasks.definition import TaskConfig
from mmchat.evaluation.tasks.parsers import PARSERS
from mmchat.evaluation.tasks.resampling import by_image, intervals
from mmchat.evaluation.tasks.samples import Sample
from mmchat.evaluation.tasks.scorers import SCORERS, Figures, Scorer

MOST_CANDIDATES = 8
"""Answers that are tried, if so many are equally common."""


@dataclass(frozen=True)
class Figure:
    """A figure of a task or of a part of it. None: unknown."""

    value: float
    interval: Interval
    blind: float | None
    guess: float | None
    """Of always the commonest right answer."""
    questions: int


@dataclass(frozen=True)
class TaskScore:
    """All figures of a task.

    Attributes:
        figures: By name, the score of the task first.
        parts: The score by field and value, as "category" and "artwork".
        questions, images: Their numbers. Orders of options count as questions.
        commonest_right: The commonest right answer.
        commonest: The answer that the model gives most often, as it is read, and its share.
        cut, looping: Shares of answers that the length limit ended, and that repeat themselves; None: unknown.
        unanswered: Questions without an answer; each counts as one with an empty text.
        blind_by: How images of the blind score were made.
        right: float[N], how right each answer is.
        read: What was read from each answer.
    """

    scorer: Scorer
    figures: Mapping[str, Figure]
    parts: Mapping[str, Mapping[str, Figure]]
    questions: int
    images: int
    commonest_right: str | None
    commonest: tuple[str, float]
    cut: float | None
    looping: float | None
    unanswered: int
    blind_by: str | None
    right: np.ndarray
    read: Sequence[str]

    @property
    def main(self) -> tuple[str, Figure]:
        """The score of the task."""
        return next(iter(self.figures.items()))

    def flat(self) -> dict[str, Any]:
        """Name -> value, as in scores.json."""
        flat: dict[str, Any] = {"questions": self.questions, "images": self.images, "unanswered": self.unanswered}
        flat |= {"blind_by": self.blind_by, "commonest_right": self.commonest_right}
        flat |= {"commonest": self.commonest[0], "commonest/share": self.commonest[1]}
        flat |= {"cut": self.cut, "looping": self.looping}
        for name, figure in self._named():
            low, high = figure.interval
            flat |= {
                name: figure.value,
                f"{name}/low": low,
                f"{name}/high": high,
                f"{name}/questions": figure.questions,
            }
            flat |= {f"{name}/blind": figure.blind, f"{name}/guess": figure.guess}
        return {name: value for name, value in flat.items() if value is not None}

    def _named(self) -> list[tuple[str, Figure]]:
        inner = [(f"{field}/{value}", figure) for field, parts in self.parts.items() for value, figure in parts.items()]
        return [*self.figures.items(), *inner]


def score_task(task: TaskConfig, answers: Answers) -> TaskScore:
    """Score the answers to a task.

    Raises:
        UserError: The right answers are not known, or the scorer cannot use the data.
    """
    samples = answers.samples
    if not all(sample.answers for sample in samples):
        raise UserError("the data hold no right answers, as those of a test split, so nothing can be scored")
    scorer = SCORERS[task.score]
    read = read_all(task, samples, answers.own)
    sums = scorer.sums(samples, read)
    blind = None
    if answers.blind is not None:
        blind = scorer.sums(samples, read_all(task, samples, answers.blind))
    commonest_right = _commonest_right(scorer, samples)
    guess = None if commonest_right is None else scorer.sums(samples, [commonest_right] * len(samples))
    whole = _Part(scorer, samples, sums, blind, guess)
    parts = {field: whole.by(field, scorer.of_part) for field in task.by}
    (favourite, count), *_ = Counter(read).most_common(1)
    return TaskScore(
        scorer,
        whole.figures(),
        {field: values for field, values in parts.items() if values},
        len(samples),
        len({sample.image for sample in samples}),
        commonest_right,
        (favourite, count / len(read)),
        _share_stopped(answers.own, "length"),
        _share_stopped(answers.own, "repetition"),
        sum(one.error is not None for one in answers.own),
        answers.blind_by,
        scorer.right(sums),
        read,
    )


def places_by(samples: Sequence[Sample], field: str) -> dict[str, list[int]]:
    """The places of samples by the value of a field. A text with commas is several values."""
    places: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        for value in filter(None, sample.fields.get(field, "").split(",")):
            places.setdefault(value.strip(), []).append(number)
    return dict(sorted(places.items()))


def read_all(task: TaskConfig, samples: Sequence[Sample], answers: Sequence[Answered]) -> list[str]:
    """What the task's parser reads from each answer."""
    parse = PARSERS[task.parser]
    return [parse(answer.text, sample) for answer, sample in zip(answers, samples, strict=True)]


@dataclass(frozen=True)
class _Part:
    """Some questions of a task: their sums for the model, for other images, for the guess."""

    scorer: Scorer
    samples: Sequence[Sample]
    sums: np.ndarray
    blind: np.ndarray | None
    guess: np.ndarray | None

    def figures(self, only: str | None = None) -> dict[str, Figure]:
        total = self.scorer.figures(self.sums.sum(axis=0))
        drawn = intervals(by_image(self.sums, [sample.image for sample in self.samples]), self.scorer.figures)
        blind, guess = (self._of(sums) for sums in (self.blind, self.guess))
        return {
            name: Figure(total[name], drawn[name], blind.get(name), guess.get(name), len(self.samples))
            for name in total
            if only in (None, name)
        }

    def by(self, field: str, figure: str) -> dict[str, Figure]:
        """One figure for each value of a field."""
        places = places_by(self.samples, field)
        return {value: self._only(chosen).figures(figure)[figure] for value, chosen in places.items()}

    def _only(self, places: list[int]) -> "_Part":
        samples = [self.samples[place] for place in places]
        blind, guess = (None if sums is None else sums[places] for sums in (self.blind, self.guess))
        return _Part(self.scorer, samples, self.sums[places], blind, guess)

    def _of(self, sums: np.ndarray | None) -> Figures:
        return {} if sums is None else self.scorer.figures(sums.sum(axis=0))


def _commonest_right(scorer: Scorer, samples: Sequence[Sample]) -> str | None:
    """The commonest right answer, of several the one that scores best; None where no answer is right twice."""
    if not scorer.closed:
        return None
    counts = Counter(answer for sample in samples for answer in dict.fromkeys(sample.answers))
    if {answer.lower() for answer in counts} <= {"yes", "no"}:
        counts = Counter({answer.lower(): 0 for answer in counts})
        counts.update(sample.answers[0].lower() for sample in samples)
    most = max(counts.values())
    candidates = sorted(answer for answer, count in counts.items() if count == most)[:MOST_CANDIDATES]
    return max(candidates, key=lambda answer: _main(scorer, samples, answer)) if most > 1 else None


def _main(scorer: Scorer, samples: Sequence[Sample], answer: str) -> float:
    """The score of always giving one answer."""
    return next(iter(scorer.figures(scorer.sums(samples, [answer] * len(samples)).sum(axis=0)).values()))


def _share_stopped(answers: Sequence[Answered], reason: str) -> float | None:
    known = [one.stopped for one in answers if one.stopped is not None]
    return sum(why == reason for why in known) / len(known) if known else None
