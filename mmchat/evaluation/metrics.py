"""Metrics, as pure functions of predictions and references."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence


def exact_match(prediction: str, reference: str) -> bool:
    """Equal but for white space around and between words."""
    return prediction.split() == reference.split()


def commonest_answer_scores(
    kinds: Sequence[Hashable], questions: Sequence[str], references: Sequence[str]
) -> dict[Hashable, float]:
    """Per kind, the exact-match score of always giving that kind's commonest answer without looking.

    Words of the question are free: "the 7 is blue" counts as "the _ is blue" where the question names the 7, because
    whoever repeats the question needs to guess only the rest.
    """
    by_kind: dict[Hashable, Counter[str]] = {}
    for kind, question, reference in zip(kinds, questions, references, strict=True):
        asked = set(re.findall(r"\w+", question))
        rest = " ".join("_" if word in asked else word for word in reference.split())
        by_kind.setdefault(kind, Counter())[rest] += 1
    return {kind: answers.most_common(1)[0][1] / answers.total() for kind, answers in by_kind.items()}


def mean_by_kind(kinds: Sequence[Hashable], hits: Sequence[bool]) -> dict[Hashable, float]:
    """Share of hits per kind."""
    grouped: dict[Hashable, list[bool]] = {}
    for kind, hit in zip(kinds, hits, strict=True):
        grouped.setdefault(kind, []).append(hit)
    return {kind: sum(group) / len(group) for kind, group in grouped.items()}
