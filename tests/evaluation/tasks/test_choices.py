"""Which option, and which of yes and no, an answer says; by hand after the benchmarks' own programs."""

import pytest

from mmchat.evaluation.tasks.metrics.choices import (
    REFUSALS,
    first_letter,
    letter_or_text,
    mmstar_letter,
    scienceqa_letter,
)
from mmchat.evaluation.tasks.metrics.yes_no import mme_word, pope_word

OPTIONS = ["a teddy bear", "rabbit", "cat", "dog"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B) rabbit", "B"),
        ("The answer is C, of course", "C"),
        ("A or B", ""),
        ("b", ""),
        ("rabbit", "B"),
        ("It is a RABBIT.", "B"),
        ("cat and dog", ""),
        ("E", ""),
        ("Z", ""),
        ("I see Z", ""),
        ("", ""),
        ("rabbit " * 20, ""),  # longer than twice all options: not taken for one of them
        ("A nice rabbit", "A"),  # VLMEvalKit's own reading of an article
        (REFUSALS[0] + " B", ""),
    ],
)
def test_letter_or_text(answer, letter):
    assert letter_or_text(answer, OPTIONS) == letter


def test_only_options_that_there_are():
    assert letter_or_text("C", OPTIONS[:2]) == ""
    assert first_letter("C", OPTIONS[:2]) == ""
    assert scienceqa_letter("C", OPTIONS[:2]) == ""
    assert mmstar_letter("c", OPTIONS[:2]) == ""


@pytest.mark.parametrize(
    ("answer", "letter"), [(" B. rabbit", "B"), ("Because", "B"), ("b", ""), ("", ""), ("(B)", "")]
)
def test_first_letter(answer, letter):
    assert first_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" B\n", ""),  # the line break becomes ". " first, so it is no lone letter
        ("B. rabbit", "B"),
        ("B\nrabbit", "B"),
        ("B rabbit", ""),
        ("I think. The answer is D.", "D"),
        ("The answer is D", "D"),
        ("the answer is D", ""),
        ("", ""),
    ],
)
def test_scienceqa_letter(answer, letter):
    assert scienceqa_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b: rabbit", "B"),
        ("(c) cat", "C"),
        ("Option D", "D"),
        ("The answer is A.", "A"),
        ("Because", "B"),
        ("x", ""),
        ("", ""),
        ("(", ""),
    ],
)
def test_mmstar_letter(answer, letter):
    assert mmstar_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes, there is.", "yes"),
        ("No, there is not a dog.", "no"),
        ("There is not, I think", "no"),
        ("no", "no"),
        ("NO", "yes"),  # the program knows No and no
        ("No. Yes", "no"),
        ("Yes. No", "yes"),
        ("nothing", "yes"),
        ("", "yes"),
    ],
)
def test_pope_word(answer, word):
    assert pope_word(answer) == word


@pytest.mark.parametrize(
    ("answer", "word"),
    [("Yes", "yes"), ("yes, it is", "yes"), ("No.", "no"), (" no", "no"), ("now", "no"), ("I do not", ""), ("", "")],
)
def test_mme_word(answer, word):
    assert mme_word(answer) == word
