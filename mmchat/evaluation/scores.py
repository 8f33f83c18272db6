"""Scores by name, as `mmchat eval --metric` takes them, and their means with the interval that they leave open."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from mmchat.errors import UserError
from mmchat.evaluation.answer_scores import anls, relaxed_accuracy
from mmchat.evaluation.metrics import Interval, bootstrap_interval, mean_by_kind, share_interval
from mmchat.evaluation.questions import BLINDS, Blind, Question
from mmchat.evaluation.table_scores import HIGH, SLIGHT, STRICT, scrm
from mmchat.evaluation.text_scores import (
    bleu,
    edit_distance,
    meteor,
    word_f1,
    word_precision,
    word_recall,
    words,
)


@dataclass(frozen=True)
class Metric:
    """of: prediction, reference -> 0 to 1. hit: whether that is right or wrong and nothing between."""

    of: Callable[[str, str], float]
    says: str
    hit: bool = False


METRICS: Mapping[str, Metric] = {
    "ned": Metric(edit_distance, "edit distance / longer text, characters; 0 is best"),
    "word_ned": Metric(lambda p, r: edit_distance(words(p), words(r)), "the same of words; 0 is best"),
    "bleu": Metric(bleu, "BLEU-4 of each text"),
    "meteor": Metric(meteor, "METEOR without synonyms"),
    "precision": Metric(word_precision, "share of the words read that stand there"),
    "recall": Metric(word_recall, "share of the words standing there that were read"),
    "f1": Metric(word_f1, "harmonic mean of both"),
    "anls": Metric(lambda p, r: anls(p, [r]), "similarity of short answers (DocVQA)"),
    "relaxed_accuracy": Metric(relaxed_accuracy, "right, or a number at most 5 % away (ChartQA)", hit=True),
    "scrm_strict": Metric(lambda p, r: scrm(p, r, STRICT), "table behind a chart (StructChart)"),
    "scrm_slight": Metric(lambda p, r: scrm(p, r, SLIGHT), "the same, 2 letters and 5 % forgiven"),
    "scrm_high": Metric(lambda p, r: scrm(p, r, HIGH), "the same, 5 letters and 10 % forgiven"),
}


@dataclass(frozen=True)
class MetricScore:
    """The mean over all questions and its 95 % interval; `blind` is that of the answers about other images. Of each
    kind both means."""

    name: str
    mean: float
    interval: Interval
    blind: float
    per_kind: Mapping[str, tuple[float, float]]


def check(names: Sequence[str], questions: Sequence[Question]) -> None:
    """Before anything is asked, which takes long.

    Raises:
        UserError: a name of no metric, or a right answer that a metric cannot take.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"--metric {name!r} is none of {', '.join(METRICS)}")
        for question in questions:
            METRICS[name].of(question.answer, question.answer)


def measure(
    names: Sequence[str],
    questions: Sequence[Question],
    predictions: Sequence[str],
    blind: Sequence[str],
) -> list[MetricScore]:
    """Each metric over all questions: Wilson's interval of hits, else by drawing questions anew."""
    return [_measure(name, questions, predictions, blind) for name in names]


def _measure(name: str, questions: Sequence[Question], predictions: Sequence[str], blind: Sequence[str]) -> MetricScore:
    metric, kinds = METRICS[name], [question.kind for question in questions]
    values, blind_values = (
        np.array([float(metric.of(p, question.answer)) for p, question in zip(answers, questions, strict=True)])
        for answers in (predictions, blind)
    )
    if metric.hit:
        interval = share_interval(int(values.sum()), len(values))
    else:
        interval = bootstrap_interval(lambda drawn: float(values[drawn].mean()), len(values))
    seen, unseen = (mean_by_kind(kinds, each.tolist()) for each in (values, blind_values))
    per_kind = {kind: (seen[kind], unseen[kind]) for kind in seen}
    return MetricScore(name, float(values.mean()), interval, float(blind_values.mean()), per_kind)


def flat(scores: Sequence[MetricScore]) -> dict[str, float]:
    """Name -> number, as `scores.json` holds them beside the question task's own."""
    flat: dict[str, float] = {}
    for score in scores:
        low, high = score.interval
        flat |= {score.name: score.mean, f"{score.name}/low": low, f"{score.name}/high": high}
        flat[f"{score.name}/blind"] = score.blind
        for kind, (mean, blind) in score.per_kind.items():
            flat |= {f"kind/{kind}/{score.name}": mean, f"kind/{kind}/{score.name}/blind": blind}
    return flat


def metric_table(scores: Sequence[MetricScore], blind: Blind = "swapped") -> Table:
    """A line per metric: mean, interval, and the mean of answers about other images; below it one per kind."""
    table = Table(title="other scores, %", title_justify="left")
    table.add_column("score")
    for column in ("model", "95 % interval", f"blind ({BLINDS[blind]})"):
        table.add_column(column, justify="right")
    table.add_column("what it is")
    for score in scores:
        low, high = (f"{100 * end:.1f}" for end in score.interval)
        mean, unseen = f"{100 * score.mean:.1f}", f"{100 * score.blind:.1f}"
        table.add_row(score.name, mean, f"{low} to {high}", unseen, METRICS[score.name].says)
        for kind, means in sorted(score.per_kind.items()):
            mean, unseen = (f"{100 * value:.1f}" for value in means)
            table.add_row(f"  {kind}", mean, "", unseen)
    return table
