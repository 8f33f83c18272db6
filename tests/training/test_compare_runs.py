"""`mmchat runs` and `mmchat report RUN RUN`: what differs, figures, scores with intervals, answers side by side."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.stats import binomtest

from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.training.monitoring.compare_runs import differences, find_runs, interval, names_of, score_rows


@pytest.fixture
def runs(tmp_path):
    """Two runs that differ in rate and mode; both are scored on the same two questions."""
    made = []
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    for number, name in enumerate(("full", "lora")):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        config = {"run_dir": str(run), "seed": 0, "optimizer": {"lr": 1e-3 * (1 + number)}}
        config["trainable"] = {"language_model": {"mode": name, "rank": 8} if number else {"mode": "full"}}
        config |= {"ema": None, "validation": {"draft": False, "sources": {}}} if number else {"validation": None}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        rows = [
            {"step": step, "loss": 2.0 / step + number, "seconds": 0.5, "terms": 10, "tokens": 40, "images": 0,
             "tokens_per_second": 80.0, "memory": 2**30 * (1 + number)}
            for step in (1, 2, 3)
        ]  # fmt: skip
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        scores = {"overall": 0.5, "overall/questions": 2, "kind/colour": 0.5, "kind/colour/questions": 2}
        (run / "scores.json").write_text(json.dumps(scores))
        answers = [
            {"image": str(tmp_path / "a.png"), "question": "Same?", "answer": "yes", "truth": "yes"},
            {"image": str(tmp_path / "a.png"), "question": "Other?", "answer": f"<{name}>", "truth": "<lora>"},
        ]
        (run / "predictions.jsonl").write_text("\n".join(map(json.dumps, answers)))
        made.append(run)
    return made


def test_what_differs(runs):
    assert differences(runs) == {
        "optimizer.lr": [1e-3, 2e-3],
        "trainable.language_model.mode": ["full", "lora"],
        "trainable.language_model.rank": [None, 8],
    }


def test_runs_are_found_in_folders(runs, tmp_path):
    assert find_runs([tmp_path]) == find_runs([runs[0].parent, runs[1]]) == runs
    with pytest.raises(UserError, match="no run directory is there; a run has config"):
        (tmp_path / "empty").mkdir()
        find_runs([tmp_path / "empty"])
    with pytest.raises(UserError, match="nowhere is not a folder"):
        find_runs([tmp_path / "nowhere"])


def test_names_are_as_short_as_they_can_be(tmp_path):
    assert names_of([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    with pytest.raises(UserError, match="named twice"):
        names_of([tmp_path, tmp_path])


@pytest.mark.parametrize(("right", "questions"), [(0, 10), (3, 10), (95, 100), (100, 100)])
def test_intervals_are_wilsons(right, questions):
    expected = binomtest(right, questions).proportion_ci(0.95, method="wilson")
    assert interval(right / questions, questions) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_scores_of_other_questions_are_not_put_side_by_side(runs):
    assert score_rows(runs)["colour"][0] == (0.5, *interval(0.5, 2))
    scores = {"overall": 0.5, "overall/questions": 4, "kind/colour": 0.5, "kind/colour/questions": 4}
    (runs[0] / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match="scored on other questions: colour has 2 and 4; evaluate all on one file"):
        score_rows(runs)


def test_the_table(runs, tmp_path, capsys):
    assert main(["runs", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if line.split()[:1] and "│" not in line.split()[0]}
    assert "2 runs" in said and "1.00 GiB" in said and "2.00 GiB" in said and "50.0%" in said
    assert "optimizer.lr" in said and "trainable.language_model.rank" in said and rows
    written = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert [run["differs"]["optimizer.lr"] for run in written] == [1e-3, 2e-3]
    assert written[0]["scores"]["overall"] == 0.5


def test_the_page(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--out", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text()
    assert "optimizer.lr" in text and "0.002" in text and "2 runs" in text
    low, high = interval(0.5, 2)
    assert f"{100 * low:.1f} to {100 * high:.1f}" in text
    assert "&lt;lora&gt;" in text and "<lora>" not in text  # escaped
    assert text.index("Other?") < text.index("Same?")  # first what is answered differently
    assert text.count('class="wrong"') == 1 and text.count('class="right"') == 3
    assert text.count("data:image/") == 3 and "http" not in text
    assert not page.with_suffix(".png").exists()


def test_options_of_one_run_and_of_several(runs, tmp_path, capsys):
    for words, message in (
        ([*runs, "--stage", runs[0]], "--stage and --beside are for the page about one run"),
        ([runs[0], "--out", tmp_path / "x.html"], "--out is for the page about several runs"),
        ([runs[0], tmp_path], "is not a run directory: it has no config.yaml and metrics.jsonl"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["report", *map(str, words)])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
