"""Short answers by hand, after the benchmarks' own programs, whose mistakes are expected here too."""

import pytest

from mmchat.evaluation.tasks.metrics.short import (
    document_anls,
    gqa_exact,
    ocrbench_contains,
    ocrbench_formula,
    relaxed_correctness,
    same_text,
)


@pytest.mark.parametrize(
    ("answer", "answers", "expected"),
    [
        ("Denver", ["denver"], 1.0),
        ("denvar", ["denver"], 1 - 1 / 6),
        ("denvar", ["boulder", "denver", "Denver, CO"], 1 - 1 / 6),
        ("  new   york ", ["New York"], 1.0),  # no distance, whatever the length
        ("ab", ["abcd"], 0.5),  # the program keeps a similarity of exactly 0.5; the paper does not
        ("a", ["abcd"], 0.0),
        ("a  b", ["ac"], 0.5),  # distance 2 of "a b" and "ac", over the 4 characters of the answer as it stands
        ("", ["x"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_anls_of_documents(answer, answers, expected):
    assert document_anls(answer, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "answers", "expected"),
    [
        ("100", ["100"], 1),
        ("105", ["100"], 1),
        ("95.0", ["100"], 1),
        ("105.1", ["100"], 0),
        ("-100", ["100"], 0),
        ("50%", ["0.5"], 1),
        ("50", ["50%"], 0),
        ("0", ["0"], 1),
        ("0.0", ["0"], 0),  # a right answer of 0 is compared as text
        ("1,000", ["1000"], 0),  # float() does not read it
        (" Yes ", ["yes"], 1),
        ("ja", ["yes", "Ja"], 1),
        ("nan", ["1"], 0),
        ("", ["1"], 0),
    ],
)
def test_relaxed_correctness(answer, answers, expected):
    assert relaxed_correctness(answer, answers) == expected


@pytest.mark.parametrize(("answer", "expected"), [("Yes.", 1), ("yes", 1), ("yes it is", 0), (" yes", 0), ("", 0)])
def test_gqa(answer, expected):
    assert gqa_exact(answer, ["yes"]) == expected


@pytest.mark.parametrize(
    ("answer", "answers", "expected"),
    [
        ("The word is CENTRE.", ["centre"], 1),
        ("THE\nWORD", ["the word"], 1),
        ("centr", ["centre"], 0),
        ("x", ["y", "X"], 1),
        ("", ["x"], 0),
    ],
)
def test_ocrbench(answer, answers, expected):
    assert ocrbench_contains(answer, answers) == expected


@pytest.mark.parametrize(("answer", "expected"), [("x ^ { 2 }", 1), ("= x^{2} .", 1), ("X^{2}", 0), ("x^2", 0)])
def test_ocrbench_formula(answer, expected):
    assert ocrbench_formula(answer, ["x ^{ 2 }"]) == expected


def test_same_text():
    assert same_text(" A  red\n7", ["a blue 7", "a red 7"]) == 1
    assert same_text("a red 7.", ["a red 7"]) == 0
