"""`mmchat ocr` and the scores of `mmchat eval`, in process."""

import json
import shutil

import pytest

from mmchat.constants import OCR_PROMPT
from mmchat.evaluation.text_scores import edit_distance, word_f1
from mmchat.inference import Generator


@pytest.fixture
def scans(tmp_path, make_image):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        make_image(number).save(folder / f"{number}.png")
    make_image(3, 20, 60).save(folder / "tall.pdf", format="PDF", resolution=72)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4")
    return folder


def test_ocr_reads_what_is_missing_and_writes_the_text(run, assistant_dir, scans, tmp_path):
    out = tmp_path / "all.md"
    arguments = ["ocr", assistant_dir, scans, "--out", out, "--max-new-tokens", 4, "--tile", "--dpi", 72]
    looped = "0 repeated themselves and were cut, 3 reached --max-new-tokens"
    for counts in ("3 pages read, 1 could not be read, 0", "0 pages read, 1 could not be read, 3"):
        status, printed, _ = run(*arguments)
        assert (status, printed) == (0, f"{counts} were done before; {looped}: {out}\n")
    expected = Generator(assistant_dir).caption([scans / "0.png"], OCR_PROMPT)
    text = out.read_text()
    assert f"# {scans}/0.png\n\n<!-- page 1 -->\n\n{expected[0][:3]}" in text
    assert f"[page 1 could not be read: {scans}/broken.pdf is broken or cut off" in text
    lines = [json.loads(line) for line in (tmp_path / "all.md.jsonl").read_text().split("\n")[:-1]]
    assert sorted(line["path"] for line in lines) == sorted(map(str, scans.iterdir()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere --out a.md", "nowhere does not exist; expected an image file or a folder"),
        ("{scans} --out a.doc", "--out a.doc must end in one of .jsonl, .txt, .md"),
        ("{scans} --out a.md --dpi 0", "argument --dpi: expected a number from 1 on, found '0'"),
        ("{scans} --out a.md --max-repeats 1", "repeats must be at least 2, found 1"),
    ],
)
def test_mistakes(run, assistant_dir, scans, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("ocr", assistant_dir, *arguments.format(scans=scans).split())
    assert (status, out) == (2, "")
    assert message in err


def test_eval_with_other_scores(run, assistant_dir, scans, tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a red 7"}]
    records = [{"image": f"{number}.png", "conversations": turns} for number in range(2)]
    (scans / "questions.json").write_text(json.dumps(records))
    model = shutil.copytree(assistant_dir, tmp_path / "model")
    arguments = ["eval", model, scans / "questions.json", "--out", tmp_path / "run", "--max-new-tokens", 4, "--card"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    status, printed, _ = run(*arguments, "--metric", "ned", "--metric", "f1")
    assert status == 0
    assert "| `overall` | 2 | 0.0% | 0.0% |" in (model / "README.md").read_text()
    assert "exact match, %" in printed and "other scores, %" in printed
    assert printed.endswith(f"next: mmchat report {tmp_path}/run\n")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    answers = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().split("\n")[:-1]]
    for name, formula in (("ned", edit_distance), ("f1", word_f1)):
        mean = sum(formula(line["answer"], line["truth"]) for line in answers) / 2
        assert scores[name] == scores[f"kind/question/{name}"] == pytest.approx(mean)
        assert scores[f"{name}/low"] <= mean <= scores[f"{name}/high"]
    assert scores["overall"] == 0


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("rouge", "--metric 'rouge' is none of ned, word_ned, bleu, "),
        ("scrm_slight", "a reference of a table score is neither a dictionary nor CSV: 'seven'"),
    ],
)
def test_a_score_that_cannot_be_taken_is_refused_before_anything_is_asked(
    run, assistant_dir, scans, monkeypatch, metric, message
):
    monkeypatch.setattr("mmchat.inference.generator.load_assistant", None)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "seven"}]
    (scans / "questions.json").write_text(json.dumps([{"image": "0.png", "conversations": turns}]))
    status, out, err = run("eval", assistant_dir, scans / "questions.json", "--metric", metric)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
