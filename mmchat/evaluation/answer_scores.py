"""Scores of short answers about documents and charts, tolerant of small reading and measuring errors. No torch here."""

import re
from collections.abc import Sequence

from mmchat.evaluation.text_scores import edit_distance

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def anls(prediction: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity of one answer. Its mean is ANLS, DocVQA's score (arXiv:1907.00490).

    Case and white space around and between words do not count.

    Args:
        prediction: the answer.
        references: the right answers; the nearest counts.
        threshold: an answer at this `edit_distance` or more is wrong and scores 0.

    Returns:
        1 - `edit_distance`, or 0.
    """
    nearest = min(edit_distance(_normalised(prediction), _normalised(reference)) for reference in references)
    return 1 - nearest if nearest < threshold else 0.0


def relaxed_accuracy(prediction: str, reference: str, tolerance: float = 0.05) -> bool:
    """Whether the answer is right, or a number at most 5 % off (ChartQA, arXiv:2203.10244; PlotQA, arXiv:1909.00997).

    Numbers may end in a percent sign, which divides by 100 (as in pix2struct's `metrics.py`). Text, and a right answer
    of 0, must be equal; case and white space around and between words do not count.
    """
    guess, right = _number(prediction), _number(reference)
    if guess is not None and right:
        return abs(guess - right) <= tolerance * abs(right)
    return _normalised(prediction) == _normalised(reference) or (guess is not None and guess == right)


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


def _number(text: str) -> float | None:
    text = text.strip()
    digits = text.removesuffix("%")
    if not NUMBER.fullmatch(digits):
        return None
    return float(digits) / (100 if text.endswith("%") else 1)
