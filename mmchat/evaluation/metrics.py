"""Metrics, as pure functions of predictions and references."""

from collections import Counter
from collections.abc import Hashable, Sequence


def exact_match(prediction: str, reference: str) -> bool:
    """Equal but for white space around and between words."""
    return prediction.split() == reference.split()


def commonest_answer_scores(kinds: Sequence[Hashable], references: Sequence[str]) -> dict[Hashable, float]:
    """Per kind, the exact-match score of always giving that kind's commonest reference."""
    by_kind: dict[Hashable, Counter[str]] = {}
    for kind, reference in zip(kinds, references, strict=True):
        by_kind.setdefault(kind, Counter())[reference] += 1
    return {kind: answers.most_common(1)[0][1] / answers.total() for kind, answers in by_kind.items()}


def mean_by_kind(kinds: Sequence[Hashable], hits: Sequence[bool]) -> dict[Hashable, float]:
    """Share of hits per kind."""
    grouped: dict[Hashable, list[bool]] = {}
    for kind, hit in zip(kinds, hits, strict=True):
        grouped.setdefault(kind, []).append(hit)
    return {kind: sum(group) / len(group) for kind, group in grouped.items()}
