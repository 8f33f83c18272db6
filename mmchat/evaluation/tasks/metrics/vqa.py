"""VQA accuracy: the share of people whose answer it is, of ten people or so (arXiv:1505.00468, section 3).

Equal to `vqaEval.py` of GT-Vision-Lab/VQA (PythonEvaluationTools), as it is used for VQAv2, and to the evaluator of
Pythia and MMF (`EvalAIAnswerProcessor`, TextVQA), which lmms-eval and LLaVA use too.
"""

import re
from collections.abc import Sequence

from mmchat.evaluation.tasks.metrics.vqa_words import CONTRACTIONS, NUMBERS

ENOUGH = 3
"""People who must have given an answer for it to be right."""
ARTICLES = frozenset({"a", "an", "the"})
MARKS = ';/[]"{}()=+\\_-><@`,?!'
MOST_PERIODS = 32
"""The official program passes `re.UNICODE`, which is 32, where `re.sub` expects the largest number of replacements."""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one answer, from 0 to 1.

    Args:
        prediction: The answer.
        answers: Those of the people, ten in VQAv2. Where all agree, texts are compared as they stand, except for case.

    Returns:
        The mean over all but one person of min(1, others who gave this answer / 3).
    """
    guess, right = _one_line(prediction), [_one_line(answer) for answer in answers]
    if len(set(right)) > 1:
        guess, *right = map(normalised, (guess, *right))
    return _agreement(guess.lower(), [answer.lower() for answer in right])


def text_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """As `vqa_accuracy`, with the normalisation of TextVQA, which is always applied."""
    return _agreement(_text_vqa(prediction), [_text_vqa(answer) for answer in answers])


def normalised(text: str) -> str:
    """Without articles and most punctuation, numbers below eleven as digits, apostrophes where they were left out."""
    words = [NUMBERS.get(word, word) for word in _without_marks(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _agreement(guess: str, right: Sequence[str]) -> float:
    """The mean over people of what the others say. A person who gave the answer does not count for himself."""
    same = sum(answer == guess for answer in right)
    others = [same - (answer == guess) for answer in right]
    return sum(min(1.0, count / ENOUGH) for count in others) / len(right)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """A mark beside a space is dropped, another becomes a space; all are dropped if a number has a comma."""
    has_comma = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or has_comma else " ")
    return _PERIOD.sub("", found, count=MOST_PERIODS)


def _text_vqa(text: str) -> str:
    """Pythia's `word_tokenize` first: it separates 's and drops commas and question marks."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalised(_one_line(text.strip()))
