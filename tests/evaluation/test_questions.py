"""Scores worked out by hand, and images that are really swapped."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmchat.data.image_refs import ImageFile
from mmchat.errors import UserError
from mmchat.evaluation.metrics import commonest_answer_scores, exact_match, mean_by_kind
from mmchat.evaluation.questions import Question, evaluate, read_questions, score, swap_images
from mmchat.inference import Generator


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("a red 7", "a red 7", True),
        ("  a  red\n7 ", "a red 7", True),
        ("", "", True),
        ("A red 7", "a red 7", False),
        ("a red 7.", "a red 7", False),
        ("a red7", "a red 7", False),
        ("", "a", False),
    ],
)
def test_exact_match(prediction, reference, same):
    assert exact_match(prediction, reference) is same


def test_metrics_by_hand():
    kinds = ["count", "count", "count", "count", "colour"]
    assert commonest_answer_scores(kinds, ["?"] * 5, ["2", "1", "2", "3", "red"]) == {"count": 0.5, "colour": 1.0}
    assert mean_by_kind(kinds, [True, False, False, False, True]) == {"count": 0.25, "colour": 1.0}
    with pytest.raises(ValueError, match="zip"):
        mean_by_kind(kinds, [True])


def test_the_commonest_answer_may_repeat_the_question():
    questions = ["What color is the 7?", "What color is the 2?", "What color is the 1?"]
    answers = ["the 7 is blue", "the 2 is blue", "the 1 is red"]
    assert commonest_answer_scores(["colour"] * 3, questions, answers) == {"colour": pytest.approx(2 / 3)}


def question(image, answer, kind="count", text="How many?"):
    return Question(ImageFile(".", image), text, answer, kind)


@given(st.lists(st.integers(0, 6), min_size=2).filter(lambda images: len(set(images)) > 1))
def test_swapped_images_are_never_the_own(images):
    questions = [question(f"{image}.png", "1") for image in images]
    swapped = swap_images(questions)
    assert all(other != asked.image for other, asked in zip(swapped, questions, strict=True))
    assert set(swapped) == {asked.image for asked in questions}


def test_one_image_cannot_be_swapped():
    with pytest.raises(UserError, match="needs at least two"):
        swap_images([question("a.png", "1"), question("a.png", "2")])


def test_score_by_hand():
    asked = [question("a", "1"), question("b", "1"), question("c", "2"), question("d", "red", "colour")]
    result = score(asked, predictions=["1", "2", "2", "red"], blind=["1", "1", "1", "blue"])
    count, colour = result.kinds[1], result.kinds[0]
    assert (count.kind, count.questions) == ("count", 3)
    assert (count.score, count.blind, count.commonest) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (colour.score, colour.blind, colour.commonest) == (1, 0, 1)
    assert result.overall.score == 0.75
    assert result.overall.blind == 0.5
    assert result.overall.commonest == pytest.approx(0.75)
    flat = result.flat()
    assert flat["overall"] == 0.75
    assert flat["overall/blind"] == 0.5
    assert flat["kind/colour"] == flat["kind/colour/commonest"] == 1
    assert flat["kind/count/questions"] == 3
    assert all(isinstance(value, int | float) for value in flat.values())
    assert json.loads(json.dumps(flat)) == flat


def conversation(*turns):
    return [{"from": "human" if i % 2 == 0 else "gpt", "value": value} for i, value in enumerate(turns)]


@pytest.fixture
def write(tmp_path, make_image):
    for name in ("a", "b"):
        make_image().save(tmp_path / f"{name}.png")

    def write(*records):
        path = tmp_path / "questions.json"
        path.write_text(json.dumps(records))
        return path

    return write


def test_read_questions(write):
    turns = conversation("<image>\nHow many?", "Two.", "Which colour?", "Red.")
    path = write({"image": "a.png", "conversations": turns, "kinds": ["count", "colour"]})
    root = path.parent
    assert read_questions(path, root) == [
        Question(ImageFile(str(root), "a.png"), "How many?", "Two.", "count"),
        Question(ImageFile(str(root), "a.png"), "Which colour?", "Red.", "colour"),
    ]
    path = write({"image": "b.png", "conversations": turns})
    assert [asked.kind for asked in read_questions(path, root)] == ["question", "question"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "c.png", "conversations": conversation("<image>", "a")}, r"record 1: image .*c\.png does not exist"),
        ({"conversations": conversation("What?", "a")}, "record 1: 0 images; the question task needs exactly one"),
        ({"image": "a.png", "conversations": conversation("<image>", "a", "b")}, "2 questions, 1 answers, 2 kinds"),
        ({"image": "a.png", "conversations": conversation("<image>", "a"), "kinds": []}, "1 answers, 0 kinds"),
    ],
)
def test_an_evaluation_leaves_nothing_out(write, record, message):
    path = write(record)
    with pytest.raises(UserError, match=message):
        read_questions(path, path.parent)


class FakeAnswer:
    """A complete answer."""

    def __init__(self, text):
        self.text = text

    def result(self):
        return self


def test_evaluate_asks_with_the_own_and_with_another_image(assistant_dir, write, monkeypatch, make_image):
    path = write(
        {"image": "a.png", "conversations": conversation("<image>\nWhat?", "x", "Long question?", "y")},
        {"image": "b.png", "conversations": conversation("<image>\nWhat?", "z")},
    )
    make_image(9).save(path.parent / "b.png")
    questions = read_questions(path, path.parent)
    generator = Generator(assistant_dir, device="cpu")
    seen = []

    def answer(requests, max_new_tokens):
        for messages, images in requests:
            seen.append(max_new_tokens)
            opened = images[0]()
            yield FakeAnswer(f"{messages[-1]['content'][-1]['text']} {opened.tobytes() == own}")

    own = make_image().tobytes()
    monkeypatch.setattr(generator, "submit_all", answer)
    result = evaluate(generator, questions, max_new_tokens=5)
    assert result.predictions == ["What? True", "Long question? True", "What? False"]
    assert result.blind == ["What? False", "Long question? False", "What? True"]
    assert seen == [5] * 6
    assert result.overall.questions == 3
    own = Image.new("RGB", make_image().size, "white").tobytes()
    result = evaluate(generator, questions, max_new_tokens=5, blind="blank")
    assert result.blind == ["What? True", "Long question? True", "What? True"]
    assert result.predictions == ["What? False", "Long question? False", "What? False"]
