"""Records are untrusted text: the reports of `mmchat data check` show it without executing anything."""

import json
from pathlib import Path

import pytest

from mmchat.data.doctor.report import write_reports
from mmchat.data.doctor.run import check
from mmchat.files import read_json_lines
from tests.data.doctoring import ask, record, scene
from tests.data.storing import write_jsonl
from tests.demo.browser import CHROMEDRIVER, CHROMIUM, browsing, requested

HOSTILE = (
    "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"> {{ 1 }} [bold red]x[/]"
)


@pytest.fixture
def hostile(tmp_path) -> Path:
    scene(1).save(tmp_path / "a.png")
    items = [
        {**record(HOSTILE, "a.png", HOSTILE), "extra": {"deep": [HOSTILE * 500]}},
        record(HOSTILE, HOSTILE),
        record("\x1b]0;title\x07\u202e", "a.png", f"{HOSTILE}\x1b[31m</s>", answer=HOSTILE),
        record("surrogate \ud800", "a.png", "half \udfff"),
        {"id": HOSTILE, "conversations": [{"from": HOSTILE, "value": HOSTILE}]},
        record("deep", "a.png") | {"extra": json.loads("[" * 400 + "]" * 400)},
    ]
    path = tmp_path / "[bold]records[_].jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_untrusted_text_stays_text(run, hostile, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = run(hostile, "--out", out)
    assert status == 1
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown and "<img" not in markdown and "⟨script⟩" in markdown
    assert not {"\x1b", "\u202e", "\x07"} & set(page + printed + markdown)
    assert len(page) < 200_000
    lines = read_json_lines(out / "quarantine.jsonl")
    assert {line["kind"] for line in lines} == {"missing_image", "lone_surrogate", "role_order"}
    assert next(line for line in lines if line["kind"] == "lone_surrogate")["id"] == "surrogate \ud800"
    assert max(map(len, (out / "quarantine.jsonl").read_text().splitlines())) < 60_000


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(hostile, tmp_path, dark):
    out = tmp_path / "out"
    write_reports(check(ask(hostile, out)))
    with browsing(f"file://{out}/report.html", tmp_path / "profile", 1280, 1000, dark, ready="svg rect") as driver:
        assert driver.title.startswith("mmchat data check: ")
        assert [url for url in requested(driver) if not url.startswith(("file://", "data:"))] == []
        assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        loaded = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
        assert driver.execute_script(loaded) and driver.execute_script("return document.images.length") > 3


@pytest.mark.parametrize(
    ("entry", "place", "root"),
    [
        ("images/0000.jpg", "images/0000.jpg", "."),  # another --image-root was given
        ("0000.jpg", "images/0000.jpg", "images"),
        ("train/0000.jpg", "data/coco/train/0000.jpg", "data/coco"),
        ("train/0000.jpg", "images/0000.jpg", None),
    ],
)
def test_where_all_images_are_missing_they_are_looked_for(run, tmp_path, monkeypatch, entry, place, root):
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "set"
    (folder / place).parent.mkdir(parents=True)
    scene(1).save(folder / place)
    data = write_jsonl(folder / "data.jsonl", [record("a", entry), record("text only")])
    (tmp_path / "elsewhere").mkdir()
    _, printed, _ = run(data, "--image-root", tmp_path / "elsewhere", "--out", tmp_path / "out")
    found = folder / place
    if root is None:
        assert f"All images are missing. {found} exists: correct the paths in the records." in printed
        return
    assert f"All images are missing. Wrong --image-root? {found} exists." in printed
    command = next(line for line in printed.splitlines() if line.startswith("next: mmchat data check"))
    assert command == f"next: mmchat data check {data} --image-root {folder / root}"
    status, printed, _ = run(*command.split()[4:], "--out", tmp_path / "out")
    assert status == 0 and "All images are missing" not in printed
    assert f"next: mmchat train CONFIG --data.path {data} --data.image_root {folder / root}\n" in printed


def test_one_image_that_is_there_means_that_the_root_is_right(run, tmp_path):
    scene(1).save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    scene(2).save(tmp_path / "sub" / "b.png")
    data = write_jsonl(tmp_path / "data.jsonl", [record("a", "a.png"), record("b", "b.png")])
    assert "All images are missing" not in run(data, "--out", tmp_path / "out")[1]


def test_the_terminal_shows_an_example_of_each_kind(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    data = write_jsonl(tmp_path / "d.jsonl", [record("a", "x.png"), record("b", "y.png"), {"id": "c"}])
    printed = run(data, "--out", tmp_path / "out")[1]
    joined = "".join(printed.split())
    assert f"{data}:1: image {tmp_path}/x.png does not exist".replace(" ", "") in joined
    assert "y.png" not in printed and f"{data}:3:" in joined
    lines = printed.partition(f"{tmp_path}/out")[0].splitlines()
    assert max(map(len, lines[: lines.index(next(line for line in lines if "not checked" in line))])) <= 80
