"""VQA accuracy, worked out by hand after the official program (GT-Vision-Lab/VQA, vqaEval.py)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.evaluation.tasks.metrics.vqa import normalised, text_vqa_accuracy, vqa_accuracy


def people(**counts):
    return [answer.replace("_", " ") for answer, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The red car", "red car"),
        ("two dogs and a cat", "2 dogs and cat"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("shouldntve", "shouldntve"),  # only one of the two apostrophes may be missing
        ("shouldn'tve", "shouldn't've"),
        ("yes.", "yes"),
        ("3.5 miles", "3.5 miles"),
        ("u.s.a.", "usa"),
        ("1,000", "1000"),  # a number with a comma drops every mark
        ("1,000/day", "1000day"),
        ("red,white", "red white"),  # a mark within words becomes a space
        ("red, white", "red white"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("what?", "what"),
        ("a", ""),
        ("somebody'd", "somebodyd"),
        ("it's", "it's"),
        ("'ows'at", "'ow's'at"),
        ("." * 40, "." * 8),  # the program passes re.UNICODE, 32, as the number of replacements
    ],
)
def test_normalisation(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("answer", "answers", "expected"),
    [
        # n others said so: the mean over ten people of min(1, others / 3)
        ("red", people(red=10), 1.0),
        ("red", people(red=1, blue=9), (9 / 3) / 10),
        ("red", people(red=2, blue=8), (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("red", people(red=3, blue=7), (3 * 2 / 3 + 7 * 1) / 10),
        ("red", people(red=4, blue=6), 1.0),
        ("green", people(red=4, blue=6), 0.0),
        ("The red", people(red=4, blue=6), 1.0),
        ("2", people(two=4, three=6), 1.0),
        # all people agree: nothing is normalised but case
        ("the red", people(red=10), 0.0),
        ("Red", people(red=10), 1.0),
        ("t shirt", ["t-shirt"] * 10, 0.0),
        ("t shirt", ["t-shirt"] * 9 + ["shirt"], 1.0),
        (" red\n", people(red=10), 1.0),
    ],
)
def test_accuracy(answer, answers, expected):
    assert vqa_accuracy(answer, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "answers", "expected"),
    [
        ("the dog's", ["dog 's"] * 10, 1.0),  # Pythia separates 's, and always normalises
        ("NIKE.", ["nike"] * 10, 1.0),
        ("1,000", ["1000"] * 4 + ["10"] * 6, 1.0),
        ("what?", ["what"] * 10, 1.0),
        ("adidas", ["nike"] * 10, 0.0),
        ("nike", ["nike"] * 3 + ["x"] * 7, 0.9),
    ],
)
def test_text_vqa(answer, answers, expected):
    assert text_vqa_accuracy(answer, answers) == pytest.approx(expected)


@given(
    st.lists(st.sampled_from(["red", "blue", "2", "a cat"]), min_size=2, max_size=12),
    st.sampled_from(["red", "2", "x"]),
)
def test_against_the_loop_of_the_program(answers, answer):
    expected = []
    for left_out in range(len(answers)):
        others = [normalised(one) for number, one in enumerate(answers) if number != left_out]
        expected.append(min(1, others.count(normalised(answer)) / 3))
    if len(set(answers)) > 1 or "cat" not in answers[0]:
        assert vqa_accuracy(answer, answers) == pytest.approx(sum(expected) / len(expected))
