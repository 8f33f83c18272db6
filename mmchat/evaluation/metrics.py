"""Metrics, as pure functions of predictions and references."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from mmchat.extras import require

Interval = tuple[float, float]
"""Lower and upper end."""
QUERIES_AT_A_TIME = 1024
"""Queries whose similarities to the whole gallery are in memory at once."""


def exact_match(prediction: str, reference: str) -> bool:
    """Whether both have the same words; the white space between and around them does not count."""
    return prediction.split() == reference.split()


def commonest_answer_scores(
    kinds: Sequence[Hashable], questions: Sequence[str], references: Sequence[str]
) -> dict[Hashable, float]:
    """Exact match of a guesser that always gives the commonest answer of a kind, without looking at the image.

    It may repeat words of the question. "the 7 is blue" counts as "the _ is blue" if the question names the 7, because
    only the rest must be guessed.

    Returns:
        kind -> share of right answers.
    """
    by_kind: dict[Hashable, Counter[str]] = {}
    for kind, question, reference in zip(kinds, questions, references, strict=True):
        in_question = set(re.findall(r"\w+", question))
        rest = " ".join("_" if word in in_question else word for word in reference.split())
        by_kind.setdefault(kind, Counter())[rest] += 1
    return {kind: answers.most_common(1)[0][1] / answers.total() for kind, answers in by_kind.items()}


def mean_by_kind(kinds: Sequence[Hashable], scores: Sequence[float]) -> dict[Hashable, float]:
    """The mean score of each kind; for hits (bool) their share."""
    grouped: dict[Hashable, list[float]] = {}
    for kind, score in zip(kinds, scores, strict=True):
        grouped.setdefault(kind, []).append(score)
    return {kind: sum(group) / len(group) for kind, group in grouped.items()}


def ranks_of_targets(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The number of classes ranked before the right one.

    Equal scores keep their order, as in argmax, so rank 0 is what argmax predicts.

    Args:
        scores: float[N, C].
        targets: int[N].

    Returns:
        int[N].
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.argmax(order == targets[:, None], axis=1)


def mean_per_class(targets: np.ndarray, hits: np.ndarray) -> float:
    """Mean over classes of the share of hits, for the classes that occur; from int[N] and bool[N]."""
    counts = np.bincount(targets)
    return float((np.bincount(targets, weights=hits)[counts > 0] / counts[counts > 0]).mean())


def calibration_error(confidences: np.ndarray, hits: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., arXiv:1706.04599, equation 3): the gap of confidence and accuracy.

    Args:
        confidences: float[N], the probability of the predicted class.
        hits: bool[N], whether it was right.
        bins: number of bins of equal width, each open below and closed above.
    """
    places = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=confidences - hits, minlength=bins)
    return float(np.abs(gaps).sum() / len(hits))


def share_interval(hits: int, total: int) -> Interval:
    """Wilson's 95 % interval of a share."""
    require("scipy")
    from scipy.stats import binomtest

    found = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def share_with_interval(hits: np.ndarray) -> tuple[float, Interval]:
    """The share of hits in bool[N], and its 95 % interval."""
    return float(hits.mean()), share_interval(int(hits.sum()), len(hits))


def flatten_intervals(figures: dict[str, tuple[float, Interval]]) -> dict[str, float]:
    """`{name: (value, (low, high))}` -> `{name: value, name/low: low, name/high: high}`, as in scores.json."""
    flat = {}
    for name, (value, (low, high)) in figures.items():
        flat |= {name: value, f"{name}/low": low, f"{name}/high": high}
    return flat


def bootstrap_interval(statistic: Callable[[np.ndarray], float], total: int, draws: int = 1000) -> Interval:
    """95 % interval by bootstrap. The draws are seeded, so the interval is reproducible.

    Args:
        statistic: indices int[total], drawn with replacement -> value.
        total: sample size.
        draws: number of resamples.
    """
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(total, size=total)) for _ in range(draws)]
    return middle_95(values)


def middle_95(values: Sequence[float] | np.ndarray) -> Interval:
    """The interval that holds the middle 95 % of values."""
    low, high = np.percentile(np.asarray(values), (2.5, 97.5))
    return float(low), float(high)


def retrieval_ranks(queries: np.ndarray, gallery: np.ndarray, right: Sequence[Sequence[int]]) -> np.ndarray:
    """The number of wrong items ranked before the first right one, by dot product. Ties count against the model.

    Args:
        queries: float[Q, P].
        gallery: float[G, P].
        right: for each query, the indices of its right items, at least one.

    Returns:
        int[Q].
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), QUERIES_AT_A_TIME):
        block = queries[start : start + QUERIES_AT_A_TIME] @ gallery.T
        for number, scores in enumerate(block, start):
            best = scores[right[number]].max()
            ranks[number] = (scores >= best).sum() - (scores[right[number]] >= best).sum()
    return ranks
