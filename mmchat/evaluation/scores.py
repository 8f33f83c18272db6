"""The metrics of `mmchat eval --metric` by name, and their means with 95 % intervals."""

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
    split_words,
    word_f1,
    word_precision,
    word_recall,
)


@dataclass(frozen=True)
class Metric:
    """A score of one answer.

    compute: (prediction, reference) -> 0 to 1.
    binary: whether the only values are 0 and 1.
    """

    compute: Callable[[str, str], float]
    description: str
    binary: bool = False


METRICS: Mapping[str, Metric] = {
    "ned": Metric(edit_distance, "edit distance / longer text, characters; 0 is best"),
    "word_ned": Metric(
        lambda p, r: edit_distance(split_words(p), split_words(r)), "edit distance / longer text, words; 0 is best"
    ),
    "bleu": Metric(bleu, "BLEU-4 of each text"),
    "meteor": Metric(meteor, "METEOR without synonyms"),
    "precision": Metric(word_precision, "share of the predicted words that are in the reference"),
    "recall": Metric(word_recall, "share of the words of the reference that were predicted"),
    "f1": Metric(word_f1, "harmonic mean of precision and recall"),
    "anls": Metric(lambda p, r: anls(p, [r]), "similarity of short answers (DocVQA)"),
    "relaxed_accuracy": Metric(relaxed_accuracy, "right, or a number at most 5 % away (ChartQA)", binary=True),
    "scrm_strict": Metric(lambda p, r: scrm(p, r, STRICT), "table behind a chart (StructChart)"),
    "scrm_slight": Metric(lambda p, r: scrm(p, r, SLIGHT), "the same, tolerating 2 letters and 5 %"),
    "scrm_high": Metric(lambda p, r: scrm(p, r, HIGH), "the same, tolerating 5 letters and 10 %"),
}


@dataclass(frozen=True)
class MetricScore:
    """A metric over all questions.

    blind: the mean of the answers about other images.
    per_kind: kind -> (mean, blind mean).
    """

    name: str
    mean: float
    interval: Interval
    blind: float
    per_kind: Mapping[str, tuple[float, float]]


def check_metrics(names: Sequence[str], questions: Sequence[Question]) -> None:
    """Check metrics before any question is asked, which takes long.

    Raises:
        UserError: there is no metric of a name, or a right answer is not something it can score.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"--metric {name!r} is none of {', '.join(METRICS)}")
        for question in questions:
            METRICS[name].compute(question.answer, question.answer)


def score_answers(
    names: Sequence[str],
    questions: Sequence[Question],
    predictions: Sequence[str],
    blind: Sequence[str],
) -> list[MetricScore]:
    """Each metric over all questions. Intervals are Wilson's for binary metrics, else by bootstrap over questions."""
    return [_score(name, questions, predictions, blind) for name in names]


def _score(name: str, questions: Sequence[Question], predictions: Sequence[str], blind: Sequence[str]) -> MetricScore:
    metric, kinds = METRICS[name], [question.kind for question in questions]
    values, blind_values = (
        np.array([float(metric.compute(p, question.answer)) for p, question in zip(answers, questions, strict=True)])
        for answers in (predictions, blind)
    )
    if metric.binary:
        interval = share_interval(int(values.sum()), len(values))
    else:
        interval = bootstrap_interval(lambda sample: float(values[sample].mean()), len(values))
    means, blind_means = (mean_by_kind(kinds, each.tolist()) for each in (values, blind_values))
    per_kind = {kind: (means[kind], blind_means[kind]) for kind in means}
    return MetricScore(name, float(values.mean()), interval, float(blind_values.mean()), per_kind)


def flatten_scores(scores: Sequence[MetricScore]) -> dict[str, float]:
    """Metric name -> number, as in scores.json next to those of the question task."""
    flat: dict[str, float] = {}
    for score in scores:
        low, high = score.interval
        flat |= {score.name: score.mean, f"{score.name}/low": low, f"{score.name}/high": high}
        flat[f"{score.name}/blind"] = score.blind
        for kind, (mean, blind) in score.per_kind.items():
            flat |= {f"kind/{kind}/{score.name}": mean, f"kind/{kind}/{score.name}/blind": blind}
    return flat


def metric_table(scores: Sequence[MetricScore], blind: Blind = "swapped") -> Table:
    """A row per metric with mean, interval and blind mean, and below it a row per kind."""
    table = Table(title="other scores, %", title_justify="left")
    table.add_column("score")
    for column in ("model", "95 % interval", f"blind ({BLINDS[blind]})"):
        table.add_column(column, justify="right")
    table.add_column("description")
    for score in scores:
        low, high = (f"{100 * end:.1f}" for end in score.interval)
        mean, blind_mean = f"{100 * score.mean:.1f}", f"{100 * score.blind:.1f}"
        table.add_row(score.name, mean, f"{low} to {high}", blind_mean, METRICS[score.name].description)
        for kind, means in sorted(score.per_kind.items()):
            mean, blind_mean = (f"{100 * value:.1f}" for value in means)
            table.add_row(f"  {kind}", mean, "", blind_mean)
    return table
