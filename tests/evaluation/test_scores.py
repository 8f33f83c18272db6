"""Scores of texts, answers and tables: worked out by hand, and against nltk and slow formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.metrics.scores import f_measure, precision, recall
from nltk.translate.bleu_score import sentence_bleu

from mmchat.data.image_refs import ImageFile
from mmchat.errors import UserError
from mmchat.evaluation.answer_scores import anls, relaxed_accuracy
from mmchat.evaluation.metrics import share_interval
from mmchat.evaluation.questions import Question
from mmchat.evaluation.scores import METRICS, flatten_scores, score_answers
from mmchat.evaluation.table_scores import HIGH, SLIGHT, STRICT, scrm, triplets
from mmchat.evaluation.text_scores import (
    bleu,
    edit_distance,
    meteor,
    split_words,
    word_f1,
    word_precision,
    word_recall,
)

TEXTS = st.text("ab 读书\n", max_size=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  quick,\nfox ", ["a", "quick,", "fox"]),
        ("你好\uff0c世界。", ["你", "好", "\uff0c", "世", "界", "。"]),
        ("用GPU 2块", ["用", "GPU", "2", "块"]),
        ("", []),
    ],
)
def test_words(text, expected):
    assert split_words(text) == expected


@pytest.mark.parametrize(
    ("read", "there", "characters", "of_words"),
    [
        ("the cat", "the cat", 0, 0),
        ("the hat", "the cat", 1 / 7, 1 / 2),
        ("the cat sat", "the cat", 4 / 11, 1 / 3),
        ("", "the cat", 1, 1),
        ("", "", 0, 0),
        ("读书", "读写书", 1 / 3, 1 / 3),
    ],
)
def test_edit_distance_by_hand(read, there, characters, of_words):
    assert METRICS["ned"].compute(read, there) == pytest.approx(characters)
    assert METRICS["word_ned"].compute(read, there) == pytest.approx(of_words)


def slow_distance(one, other):
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row[0] = row[:], i
        for j, b in enumerate(other, 1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b))
    return row[-1]


@given(TEXTS, TEXTS)
def test_edit_distance_is_levenshteins_over_the_longer(one, other):
    longer = max(len(one), len(other))
    assert edit_distance(one, other) == pytest.approx(slow_distance(one, other) / longer if longer else 0)


def test_bleu_by_hand():
    """5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; as long as the reference."""
    read, there = "the cat sat on a mat", "the cat sat on the mat"
    assert bleu(read, there) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))
    assert bleu("the cat sat on", there) == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu("a dog ran", there) == 0
    assert bleu("", "") == 1
    assert bleu("a", "") == bleu("", "a") == 0
    assert bleu(there, there) == 1
    assert bleu("读书写字", "读书写字") == 1


def test_bleu_is_nltks(recwarn):
    read, there = "a b c d e f g x", "a b c d y f g x z"
    assert bleu(read, there) == sentence_bleu([there.split()], read.split())
    assert bleu("a b", "a c") < 1e-50
    assert not recwarn.list


def test_meteor_by_hand():
    """Precision and recall weigh 1 to 9; the penalty is half the cube of chunks over matches."""
    assert meteor("the cat sat", "the cat sat") == pytest.approx(1 - 0.5 * (1 / 3) ** 3)
    # Four words of five match, in the chunks "the cat" and "on mats", the last by its stem.
    p, r = 4 / 5, 4 / 4
    mean = p * r / (0.9 * p + 0.1 * r)
    assert meteor("the cat slept on mats", "the cat on mat") == pytest.approx(mean * (1 - 0.5 * (2 / 4) ** 3))
    assert meteor("a dog", "the cat") == 0
    assert (meteor("", ""), meteor("a", ""), meteor("", "a")) == (1, 0, 0)


@given(TEXTS, TEXTS)
def test_overlap_of_words_is_nltks(read, there):
    found, wanted = set(split_words(read)), set(split_words(there))
    if found and wanted:
        assert word_precision(read, there) == precision(wanted, found)
        assert word_recall(read, there) == recall(wanted, found)
        assert word_f1(read, there) == pytest.approx(f_measure(wanted, found))
    else:
        assert word_precision(read, there) == word_recall(read, there) == word_f1(read, there) == (found == wanted)


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("Paris", ["paris"], 1),
        (" new  york", ["New York"], 1),
        ("Pariz", ["Paris"], 4 / 5),
        ("ab", ["abcd"], 0),  # half is too much
        ("abc", ["abcde"], 3 / 5),
        ("London", ["Paris", "Londan"], 5 / 6),
        ("", ["Paris"], 0),
        ("", [""], 1),
    ],
)
def test_anls_by_hand(answer, right, score):
    assert anls(answer, right) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("94.9", "100", False),
        ("-100", "100", False),
        ("-10.4", "-10", True),
        ("25%", "0.25", True),
        ("25", "25%", False),
        ("0", "0", True),
        ("0.0", "0", True),
        ("0.01", "0", False),
        ("Yes", "yes", True),
        ("yes", "no", False),
        ("blue", "3", False),
        ("nan", "3", False),
        ("inf", "3", False),
        ("1e2", "100", True),
    ],
)
def test_relaxed_accuracy_by_hand(answer, right, score):
    assert relaxed_accuracy(answer, right) is score


TABLE = "year,apples,pears\n2019,10,7\n2020,$1200,8%\n"
DICTIONARY = "{'title': 'Fruit', 'values': {'2019': {'apples': 10}, '2020': 7.5}}"


def test_triplets():
    cells = {("2019", "apples", 10), ("2019", "pears", 7), ("2020", "apples", 1200), ("2020", "pears", 8)}
    assert triplets(TABLE) == cells
    assert triplets(TABLE.replace(",", "\t")) == cells
    assert triplets("\t2019\t2020\nApples\t10\t1,200\npears\t7\t8") == cells
    assert triplets("| | 2019 | 2020 |\n|---|:-:|--:|\n| apples | 10 | 1,200 |\n| pears | 7 | 8 |") == cells
    expected = {("", "title", "fruit"), ("apples", "values 2019", 10.0), ("2020", "values", 7.5)}
    assert triplets(DICTIONARY) == expected
    assert triplets(DICTIONARY.replace("'", '"')) == expected
    assert triplets('{"x": [1, 2]}') == {("0", "x", 1), ("1", "x", 2)}
    for nothing in ("", "  \n", "no table at all", "{'a': ", "[" * 5000, "a\n" + "b" * 200_000, "(1, 2)"):
        assert triplets(nothing) == set()


@pytest.mark.parametrize(
    ("read", "strict", "slight", "high"),
    [
        (TABLE, 1, 1, 1),
        (TABLE.replace("10", "10.4"), 0.3, 1, 1),  # 3 of 5 triplets in the union: thresholds .5, .55, .6
        (TABLE.replace("10", "10.9").replace("$1200", "1300"), 0, 0, 1),  # 2 of 6
        (TABLE.replace("apples", "aples"), 0, 1, 1),
        (TABLE.replace("apples", "fruit"), 0, 0, 0),
        ("year,apples\n2019,10\n2020,1200\n", 0.1, 0.1, 0.1),  # 2 of 4
        ("nothing of the kind", 0, 0, 0),
    ],
)
def test_scrm_by_hand(read, strict, slight, high):
    scores = [scrm(read, TABLE, tolerance) for tolerance in (STRICT, SLIGHT, HIGH)]
    assert scores == pytest.approx([strict, slight, high])


def test_a_value_below_zero_is_measured_without_its_sign():
    scores = [scrm(f"a,b\nx,{value}\n", "a,b\nx,-10\n", SLIGHT) for value in ("-9.6", "-10.4", "-9.4", "50")]
    assert scores == [1, 1, 0, 0]


def test_two_readings_of_one_cell_count_once():
    assert scrm("a,b\nx,10\nxy,10\n", "a,b\nx,10\n", SLIGHT) == 0.1


def test_a_reference_that_is_no_table_is_refused():
    with pytest.raises(UserError, match="neither a dictionary nor CSV: 'seven'"):
        scrm(TABLE, "seven", STRICT)


@given(st.sampled_from(sorted(set(METRICS) - {"scrm_strict", "scrm_slight", "scrm_high"})), TEXTS, TEXTS)
def test_every_score_lies_between_0_and_1(name, read, there):
    assert 0 <= METRICS[name].compute(read, there) <= 1


def test_means_and_intervals():
    def asked(answer, kind):
        return Question(ImageFile(".", "a.png"), "?", answer, kind)

    questions = [asked("100", "number"), asked("yes", "word"), asked("no", "word"), asked("7", "number")]
    answers, blind = ["104", "yes", "yes", "8"], ["7", "no", "no", "7"]
    relaxed, distance = score_answers(["relaxed_accuracy", "ned"], questions, answers, blind)
    assert (relaxed.mean, relaxed.interval, relaxed.blind) == (0.5, share_interval(2, 4), 0.5)
    assert relaxed.per_kind == {"number": (0.5, 0.5), "word": (0.5, 0.5)}
    # Distances 1/3, 0, 1, 1; blind 1, 1, 0, 0.
    assert distance.mean == pytest.approx((1 / 3 + 2) / 4)
    assert distance.blind == 0.5
    assert distance.per_kind["number"] == pytest.approx((2 / 3, 0.5))
    assert distance.per_kind["word"] == pytest.approx((0.5, 0.5))
    assert 0 <= distance.interval[0] < distance.mean < distance.interval[1] <= 1
    figures = flatten_scores([relaxed, distance])
    assert figures["ned"] == distance.mean
    assert (figures["ned/low"], figures["ned/high"]) == distance.interval
    assert figures["kind/word/relaxed_accuracy"] == figures["relaxed_accuracy/blind"] == 0.5
    assert all(isinstance(value, float) for value in figures.values())
