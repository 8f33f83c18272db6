"""Two models on the same questions: paired differences by hand, and the pages."""

import json

import numpy as np
import pytest

from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.evaluation.metrics import middle_95
from mmchat.evaluation.tasks.answer_files import Answered, Answers
from mmchat.evaluation.tasks.comparing import compare
from mmchat.evaluation.tasks.definition import LayoutConfig, TaskConfig, open_task
from mmchat.evaluation.tasks.pages import task_page
from mmchat.evaluation.tasks.resampling import by_image, intervals, resampled
from mmchat.evaluation.tasks.samples import Sample
from mmchat.evaluation.tasks.scorers import SCORERS
from mmchat.evaluation.tasks.scoring import score_task

TASK = TaskConfig(
    title="t",
    follows="f",
    layouts=[LayoutConfig(name="l", fields={"kind": "kind"})],
    prompt="{question}",
    score="exact",
    by=["kind"],
)


def answers(right, text="x", per_image=1, kinds=("a", "b")):
    samples = [
        Sample(str(n), f"Q{n}?", (text,), (), {"kind": kinds[n % 2]}, f"image {n // per_image}", n, str(n))
        for n in range(len(right))
    ]
    return Answers(samples, [Answered(text if hit else "wrong", "end") for hit in right])


def test_resampling_is_a_bootstrap():
    """Mean and spread of the mean of 0 and 1 at equal shares: 1/2 and 1/2 / sqrt(n)."""
    units = np.stack([np.arange(100) % 2, np.ones(100)], axis=1).astype(float)
    totals = resampled(units)
    assert (totals[:, 1] == 100).all()
    means = totals[:, 0] / 100
    assert means.mean() == pytest.approx(0.5, abs=0.01)
    assert means.std() == pytest.approx(0.05, rel=0.1)
    assert np.array_equal(totals, resampled(units))
    assert not np.array_equal(totals, resampled(units, seed=1))
    assert resampled(units[:, :1])[:, 0] == pytest.approx(totals[:, 0])  # the same units are drawn
    assert middle_95(range(1001)) == (25, 975)


def test_questions_about_one_image_are_drawn_together():
    """Four equal answers about each image say no more than one: the interval is twice as wide as if they did."""
    hits = np.repeat(np.arange(50) % 2, 4).astype(float)
    sums = np.stack([hits, np.ones(200)], axis=1)
    figures = SCORERS["exact"].figures
    together = intervals(by_image(sums, [str(n // 4) for n in range(200)]), figures)["exact_match"]
    apart = intervals(by_image(sums, [str(n) for n in range(200)]), figures)["exact_match"]
    assert (together[1] - together[0]) / (apart[1] - apart[0]) == pytest.approx(2, rel=0.15)


def test_the_same_answers_do_not_differ():
    right = np.arange(100) % 3 > 0
    found = compare(TASK, answers(right), answers(right)).figures["exact_match"]
    assert (found.difference, found.interval, found.is_clear) == (0, (0, 0), False)


def test_a_difference_is_paired():
    """The second is right about ten more of 200, and about all that the first is: clear only in pairs."""
    first, second = np.arange(200) % 2 == 0, (np.arange(200) % 2 == 0) | (np.arange(200) % 20 == 1)
    comparison = compare(TASK, answers(first), answers(second))
    found = comparison.figures["exact_match"]
    assert (found.first, found.second, found.difference) == (0.5, 0.55, pytest.approx(0.05))
    assert found.is_clear and found.interval[0] > 0.01 and found.interval[1] < 0.1
    alone = [score_task(TASK, answers(each)).figures["exact_match"].interval for each in (first, second)]
    assert alone[0][1] > alone[1][0]  # apart, the intervals overlap
    assert comparison.better == ([], list(range(1, 200, 20)))
    assert set(comparison.parts["kind"]) == {"a", "b"}
    assert comparison.parts["kind"]["a"].difference == 0
    flat = comparison.flat()
    assert flat["second_better"] == 10 and flat["exact_match/difference"] == pytest.approx(0.05)
    assert json.loads(json.dumps(flat)) == flat


def test_answers_in_another_order():
    first, second = answers(np.arange(9) < 5), answers(np.arange(9) < 5)
    turned = Answers(second.samples[::-1], second.own[::-1])
    assert compare(TASK, first, turned).figures["exact_match"].difference == 0


def test_other_questions_are_refused():
    with pytest.raises(UserError, match="other questions, 4 and 5: question '4' is in one of them only"):
        compare(TASK, answers([1] * 4), answers([1] * 5))
    with pytest.raises(UserError, match="question '0' differs"):
        compare(TASK, answers([1] * 4), answers([1] * 4, text="y"))


def test_an_edit_distance_that_falls_is_better():
    _, task = open_task("pages")
    sample = Sample("1", "", ("abcd",), image="a", group="1")
    other = Sample("2", "", ("abcd",), image="b", row=1, group="2")
    first = Answers([sample, other], [Answered("abxx"), Answered("abcd")])
    second = Answers([sample, other], [Answered("abcd"), Answered("abcd")])
    comparison = compare(task, first, second)
    assert comparison.figures["edit_distance"].difference == pytest.approx(-0.25)
    assert comparison.better == ([], [0])


# The command and the pages


def predictions(folder, right):
    folder.mkdir(parents=True)
    rows = [
        {
            "image": f"{n}.png",
            "kind": "count",
            "question": "How many?",
            "answer": str(n if hit else -1),
            "truth": str(n),
        }
        for n, hit in enumerate(right)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(capsys, *words):
    capsys.readouterr()
    try:
        status = main(["eval", "compare", *map(str, words)])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_two_runs_on_questions_of_ones_own(tmp_path, capsys):
    early, late = (
        predictions(tmp_path / "early", np.arange(60) < 20),
        predictions(tmp_path / "late", np.arange(60) < 50),
    )
    status, printed, _ = run(capsys, early, late, "--out", tmp_path / "out")
    assert status == 0
    assert "+50.0" in printed and "the interval of exact_match excludes zero" in printed
    assert "better answers: early to 0 questions, late to 30; alike: 30" in printed
    values = json.loads((tmp_path / "out" / "compare.json").read_text())["questions"]
    assert values["exact_match/low"] > 0 and values["kind/count/difference"] == pytest.approx(0.5)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "late answers 30 better" in page and "early answers 0 better" in page
    status, printed, _ = run(capsys, late, late)
    assert status == 0
    assert "the interval of exact_match holds zero: no difference is shown" in printed


def test_what_cannot_be_compared(tmp_path, capsys):
    folder = predictions(tmp_path / "a", [True])
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.jsonl").write_text('{"id": "1", "answer": "a"}\n')
    cases = {
        (folder, tmp_path / "none"): "none does not exist",
        (folder, tmp_path / "empty"): "hold no TASK.answers.jsonl or predictions.jsonl of the same name",
        (folder, tmp_path / "x.jsonl"): "must both be files or both be folders",
        (tmp_path / "x.jsonl", tmp_path / "x.jsonl"): "is not known; name it with --task",
        (tmp_path / "x.jsonl", tmp_path / "x.jsonl", "--task", "pope"): "has no question of a task",
    }
    for words, message in cases.items():
        status, _, err = run(capsys, *words)
        assert (status, message in err) == (2, True), err


def test_the_page_of_a_task(make_image):
    """Wrong answers with their images and what was read; texts of a model are escaped."""
    samples = [Sample(f"{n}", f"<b>Q{n}</b>", ("A",), ("cat", "dog"), {}, f"{n}", n, f"{n}") for n in range(100)]
    said = [Answered("A" if n % 2 else "<script>alert(1)</script>", "length") for n in range(100)]
    _, task = open_task("ai2d")
    own = Answers(samples, said)
    score = score_task(task, own)
    page = task_page("ai2d", task.title, score, own, lambda sample: make_image(int(sample.id)))
    assert page.count('<div class="cell">') == page.count("data:image/png") == 48
    assert "48 of 50 among 100 questions" in page
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "read as nothing" in page and "cut" in page
    assert "<b>Q" not in page
