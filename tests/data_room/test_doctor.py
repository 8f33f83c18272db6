"""`mmchat data check`: what it writes, how it goes on, what it says. Kinds of finding: test_doctor_planted.py."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmchat.cli.main import main
from mmchat.data.config import DataConfig, SourceConfig
from mmchat.data.dataset import open_mixture
from mmchat.data.doctor import look as looking
from mmchat.data.doctor import run as doctor
from mmchat.data.doctor.duplicates import DISTANCE, find_equal, find_near, first_equal
from mmchat.data.doctor.look import difference_hash, look
from mmchat.data.doctor.report import write_reports
from mmchat.data.doctor.run import Question, check
from mmchat.data.pictures import BytesPicture, FilePicture
from mmchat.data.quarantine import Quarantine
from mmchat.files import read_json_lines
from mmchat.images import load_image
from mmchat.model.directory import load_processor
from tests.data_room.planting import png_claiming
from tests.data_room.storing import write_jsonl, write_parquet, write_tar
from tests.demo.browser import CHROMEDRIVER, CHROMIUM, browsing, requested

HOSTILE = (
    "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"> {{ 1 }} [bold red]x[/]"
)
OUTPUTS = ("quarantine.jsonl", "warnings.jsonl", "clean.npz", "findings.json")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(capsys):
    """run(*words) -> (exit status, stdout, stderr)"""

    def run(*words):
        capsys.readouterr()
        try:
            status = main(["data", "check", *map(str, words)])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


def scene(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """A picture with something in it; another seed is another picture."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def record(name: str, image: str | None = None, question: str = "", answer: str = "Yes.") -> dict:
    question = question or f"What is in {name}?"
    turns = [{"from": "human", "value": "<image>\n" * bool(image) + question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns} | ({"image": image} if image else {})


@pytest.fixture
def records(tmp_path) -> Path:
    """Ten records with a picture each: c has an empty answer, e no picture, g a turned one; i repeats h."""
    for number, name in enumerate("abcdefghij"):
        scene(number).save(tmp_path / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    scene(6).save(tmp_path / "g.png", exif=exif)
    (tmp_path / "i.png").write_bytes((tmp_path / "h.png").read_bytes())
    items = [record(name, f"{name}.png") for name in "abcdefghij"]
    items[2]["conversations"][1]["value"] = ""
    items[8]["conversations"] = items[7]["conversations"]
    (tmp_path / "e.png").unlink()
    return write_jsonl(tmp_path / "records.jsonl", items)


def ask(path: Path, out: Path, **more) -> Question:
    return Question(DataConfig(path=str(path)), out, workers=0, **more)


def kinds(out: Path) -> dict[str, str]:
    """id -> kind, of every finding"""
    lines = [line for name in OUTPUTS[:2] for line in read_json_lines(out / name)]
    assert len(lines) == len({line["id"] for line in lines})
    return {line["id"]: line["kind"] for line in lines}


def test_what_is_written(run, records, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = run(records, "--out", out)
    assert status == 1
    assert kinds(out) == {"c": "empty_answers", "e": "missing_image", "g": "exif_rotation", "i": "exact_duplicate"}
    line = next(line for line in read_json_lines(out / "quarantine.jsonl") if line["id"] == "i")
    assert line["where"] == f"{records}:9" and line["reason"].endswith(f"{records}:8")
    assert line["record"]["image"] == "i.png"
    counts = json.loads((out / "findings.json").read_text())
    assert (counts["records"], counts["records/sound"], counts["records/with_errors"]) == (10, 7, 3)
    assert (counts["error/exact_duplicate"], counts["warning/exif_rotation"], counts["error/leak"]) == (1, 1, 0)
    assert "3 of 10 records must not be trained on. Warnings: 1 more record." in printed
    assert f"next: mmchat train CONFIG --data.index {out}/clean.npz" in printed
    assert {path.name for path in out.iterdir()} == {*OUTPUTS, "report.html", "report.md"}
    config = DataConfig(path=str(records), index=out / "clean.npz")
    mixture = open_mixture(config, Quarantine(tmp_path / "q.jsonl", "stop"))
    assert [mixture.find(number)[1].id for number in range(len(mixture))] == list("abdfghj")


def test_a_second_look_sees_what_was_mended(run, records, tmp_path):
    out = tmp_path / "out"
    assert run(records, "--out", out)[0] == 1
    scene(4).save(tmp_path / "e.png")
    run(records, "--out", out)
    assert "missing_image" not in kinds(out).values()


def test_exit_statuses(run, records, tmp_path):
    good = write_jsonl(tmp_path / "good.jsonl", [record("a", "a.png"), record("b", "b.png"), record("text")])
    status, printed, _ = run(good, "--out", tmp_path / "good")
    assert status == 0 and "Training may start: no errors in 3 records." in printed
    assert "next: mmchat train CONFIG\n" in printed
    assert "not checked: Lengths" in printed
    for words, message in [
        ((tmp_path / "none.jsonl",), "does not exist"),
        ((good, "--against", tmp_path / "none.json"), "does not exist"),
        ((good, "--model", tmp_path), "config.json"),
        ((good, "--template", "x"), "unknown conversation template 'x'"),
        ((tmp_path, "--out", tmp_path), "is the data's own place"),
        ((good, "--out", good), "is the data's own place"),
        ((good, "--out", records), "cannot be written: "),
    ]:
        status, printed, err = run(*words)
        assert (status, printed) == (2, ""), words
        assert message in err


def test_the_real_command(records, tmp_path):
    words = [sys.executable, "-m", "mmchat.cli.main", "data", "check", "records.jsonl", "--workers", "2"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "records must not be trained on" in done.stdout, done.stderr
    assert len(read_json_lines(tmp_path / "records.check" / "quarantine.jsonl")) == 3


def test_a_runs_mixture_is_checked_with_each_sources_template(run, assistant_dir, records, tmp_path):
    brief = [
        record("x", "a.png"),
        record("y"),
        {
            **record("z", "b.png"),
            "conversations": [*record("z", "b.png")["conversations"], *record("z2")["conversations"]],
        },
    ]
    write_jsonl(tmp_path / "brief.jsonl", brief)
    config = {
        "run_dir": str(tmp_path / "run"),
        "model": str(assistant_dir),
        "data": {
            "max_length": 400,
            "sources": {
                "chat": {"path": str(records)},
                "brief": {"path": str(tmp_path / "brief.jsonl"), "template": "plain"},
            },
        },
        "trainable": {"projector": "full"},
        "optimizer": {"lr": 1e-3},
        "steps": 1,
        "batch_size": 1,
    }
    path, out = tmp_path / "run.yaml", tmp_path / "out"
    path.write_text(json.dumps(config))
    status, printed, _ = run(path, "--out", out)
    assert status == 1
    found = kinds(out)
    # A template of one exchange with a picture; and the same picture in two sources is nobody's duplicate.
    assert (found["y"], found["z"]) == ("template_refusal", "template_refusal") and "x" not in found
    indexes = {"chat": out / "clean.1.chat.npz", "brief": out / "clean.2.brief.npz"}
    options = " ".join(f"--data.sources.{name}.index {index}" for name, index in indexes.items())
    assert f"next: mmchat train {path} {options}" in printed
    sources = {name: SourceConfig(**source, index=indexes[name]) for name, source in config["data"]["sources"].items()}
    mixture = open_mixture(DataConfig(sources=sources), Quarantine(tmp_path / "q.jsonl", "stop"))
    assert len(mixture) == 7 + 1
    # Only what the clean index keeps is looked at again.
    config["data"]["sources"]["brief"]["index"] = str(indexes["brief"])
    config["data"]["sources"]["chat"]["index"] = str(indexes["chat"])
    path.write_text(json.dumps(config))
    assert run(path, "--out", tmp_path / "again")[0] == 0


@pytest.mark.parametrize("write", [write_tar, write_parquet])
def test_pictures_inside_shards_and_columns(records, tmp_path, write):
    scene(4).save(tmp_path / "e.png")
    items = [json.loads(line) for line in records.read_text().splitlines()]
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "d.png").write_bytes(png_claiming(60_000, 60_000))
    suffix = {"write_tar": "tar", "write_parquet": "parquet"}[write.__name__]
    path = write(tmp_path / f"records.{suffix}", items, tmp_path)
    out = tmp_path / "out"
    answer = check(ask(path, out))
    write_reports(answer)
    by_reason = {line["reason"].split()[-1]: line["kind"] for line in read_json_lines(out / "quarantine.jsonl")}
    assert sorted(by_reason.values()) == [
        *("decompression_bomb", "empty_answers", "exact_duplicate", "truncated_image")
    ]
    assert answer.counts["warning/exif_rotation"] == 1
    assert "data:image/png;base64" in (out / "report.html").read_text()


# ---------------------------------------------------------------------------------------------- going on

KILLED = """
import os, signal, sys
from pathlib import Path
from mmchat.data.config import DataConfig
from mmchat.data.doctor import parts, run
run.CHUNK = 2
if {when} == "between":
    save, count = parts.Parts.save, 0
    def dying(self, *words):
        global count
        save(self, *words)
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    parts.Parts.save = dying
else:
    fsync, count = os.fsync, 0
    def dying(file):
        global count
        count += 1
        if count == {when}:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)
    os.fsync = dying
run.check(run.Question(DataConfig(path={path!r}), Path({out!r}), workers=0))
"""


@pytest.mark.parametrize("when", ["'between'", "4", "8"])
def test_a_killed_pass_goes_on_and_ends_the_same(records, tmp_path, when, monkeypatch):
    """Killed between two parts, while one is written, and while the outcome is written."""
    monkeypatch.setattr(doctor, "CHUNK", 2)
    whole, out = tmp_path / "whole", tmp_path / "out"
    uninterrupted = check(ask(records, whole))
    code = KILLED.format(when=when, path=str(records), out=str(out))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    answer = check(ask(records, out))
    assert answer.known == {"'between'": 6, "4": 4, "8": 10}[when] and uninterrupted.known == 0
    for name in OUTPUTS:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    write_reports(answer)
    assert f"{answer.known} had been examined before" in (out / "report.md").read_text()
    answer.parts.delete()
    assert {path.name for path in out.iterdir()} == {*OUTPUTS, "report.html", "report.md"}
    assert check(ask(records, out)).known == 0


def test_other_questions_start_over(records, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CHUNK", 2)
    out = tmp_path / "out"
    check(ask(records, out))
    assert check(ask(records, out)).known == 10
    against = (SourceConfig(path=str(write_jsonl(tmp_path / "eval.jsonl", [record("v", "b.png")]))),)
    assert check(ask(records, out, against=against)).known == 0
    assert check(Question(DataConfig(path=str(records), max_turns=1), out, workers=0)).known == 0
    write_jsonl(records, [record("a", "a.png")])
    (out / "parts" / "mine.txt").write_text("kept")
    answer = check(ask(records, out))
    assert answer.known == 0
    answer.parts.delete()
    assert [path.name for path in (out / "parts").iterdir()] == ["mine.txt"]


def test_a_full_disk_is_told_and_nothing_is_lost(run, records, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CHUNK", 2)
    out, fsync, left = tmp_path / "out", os.fsync, [4]

    def full(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        status, printed, err = run(records, "--out", out, "--workers", "0")
    assert (status, printed) == (2, "")
    assert "cannot be written: No space left on device" in err and "start again, the pass goes on" in err
    assert not list(out.glob("*.jsonl")) and not list(out.rglob("*.tmp"))
    assert check(ask(records, out)).known > 0


def test_a_defect_names_the_record(records, tmp_path, monkeypatch):
    def broken(picture):
        raise ZeroDivisionError

    monkeypatch.setattr("mmchat.data.doctor.examine.look", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        check(ask(records, tmp_path / "out"))
    assert caught.value.__notes__ == [f"while examining record 0 of {records}"]


# ---------------------------------------------------------------------------------------------- strangers' text


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


def test_strangers_text_stays_text(run, hostile, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = run(hostile, "--out", out)
    assert status == 1
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert not {"\x1b", "\u202e", "\x07"} & set(page + printed + (out / "report.md").read_text())
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


# ---------------------------------------------------------------------------------------------- pictures


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def test_look_alikes_are_told_and_different_pictures_are_not(tmp_path):
    for seed in range(40):
        scene(seed, 96, 80).save(tmp_path / f"{seed}.png")
    for seed in range(0, 40, 4):
        scene(seed, 96, 80).save(tmp_path / f"like{seed}.jpg", quality=75)
    scene(1, 96, 80).resize((48, 40)).save(tmp_path / "like1.jpg")
    for blank in range(4):  # nothing in them is no likeness
        Image.new("RGB", (64, 64), (250, 250, 250 - blank)).save(tmp_path / f"blank{blank}.png")
    names = [*(f"{seed}.png" for seed in range(40)), *(p.name for p in tmp_path.glob("like*"))]
    names += [f"blank{blank}.png" for blank in range(4)]
    scene(77, 96, 80).save(tmp_path / "own.png")
    scene(77, 96, 80).save(tmp_path / "own.jpg")
    two = {**record("two", "own.png"), "image": ["own.png", "own.jpg"]}
    two["conversations"][0]["value"] += "<image>"
    path = write_jsonl(tmp_path / "r.jsonl", [*(record(name, name) for name in names), two])
    held_out = write_jsonl(tmp_path / "eval.jsonl", [record("e", "like8.jpg")])
    check(ask(path, tmp_path / "out"))
    found = {line["id"]: line["reason"] for line in read_json_lines(tmp_path / "out" / "warnings.jsonl")}
    assert found.keys() == {name for name in names if name.startswith("like")}
    assert found["like8.jpg"] == f"picture 1 is nearly the same as in {path}:9"
    answer = check(ask(path, tmp_path / "out", against=(SourceConfig(path=str(held_out)),)))
    assert (answer.counts["error/leak"], answer.counts["warning/near_leak"]) == (1, 1)


def near_by_hand(hashes, known, before):
    def alike(a, b):
        return all((int(x) ^ int(y)).bit_count() <= DISTANCE for x, y in zip(a, b, strict=True))

    return [
        next((n for n, other in enumerate(known[:until]) if alike(one, other)), -1)
        for one, until in zip(hashes, before, strict=True)
    ]


bits = st.integers(0, 2**64 - 1)
flips = st.lists(st.integers(0, 63), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(bits, min_size=1, max_size=4), st.lists(st.tuples(st.integers(0, 3), flips, flips), max_size=25))
def test_near_pictures_are_those_that_comparing_all_pairs_finds(roots, changes):
    rows = [(root, root) for root in roots]
    for which, *turned in changes:
        row = rows[which % len(rows)]
        rows.append(tuple(value ^ sum({1 << bit for bit in some}) for value, some in zip(row, turned, strict=True)))
    hashes = np.array(rows, np.uint64)
    before = np.arange(len(hashes))
    assert find_near(hashes, hashes, before).tolist() == near_by_hand(hashes, hashes, before)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30), st.integers(0, 30))
def test_equal_rows_are_found_at_their_first_place(rows, cut):
    digests = np.array(rows, np.uint64).reshape(-1, 2)
    assert first_equal(digests).tolist() == [rows.index(row) for row in rows]
    known, asked = rows[:cut], rows[cut:]
    expected = [known.index(row) if row in known else -1 for row in asked]
    assert find_equal(digests[cut:], digests[:cut]).tolist() == expected


def test_a_picture_is_read_once_however_many_records_share_it(tmp_path, monkeypatch):
    scene(3).save(tmp_path / "shared.png")
    reads = []
    read = FilePicture.read
    monkeypatch.setattr(FilePicture, "read", lambda self: reads.append(self.path) or read(self))
    items = [record(str(number), "shared.png") for number in range(20)]
    check(ask(write_jsonl(tmp_path / "r.jsonl", items), tmp_path / "out"))
    assert reads == ["shared.png"]


def test_what_is_odd_about_a_picture(monkeypatch):
    def problems(data):
        return [kind for kind, _ in look(BytesPicture(data)).problems]

    assert problems(encoded(scene(1, 100, 10))) == []
    assert problems(encoded(scene(1, 101, 10))) == ["extreme_aspect"]
    assert problems(encoded(scene(1, 9, 91))) == ["extreme_aspect", "tiny_image"]
    monkeypatch.setattr(looking, "HUGE_PIXELS", 64 * 64 - 1)
    assert problems(encoded(scene(1))) == ["huge_image"]
    assert problems(encoded(scene(1, 63, 64))) == []
    assert problems(encoded(Image.new("F", (20, 20)), "TIFF")) == ["undecodable_image"]
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        assert problems(encoded(scene(1, 60, 50), kind, exif=exif)) == ["exif_rotation"]
    turned = look(BytesPicture(encoded(scene(1, 60, 50), "PNG", exif=exif)))
    assert (turned.width, turned.height) == (50, 60)


def test_a_difference_hash_survives_another_encoding():
    alike = 0
    for seed in range(30):
        first = difference_hash(scene(seed, 90, 70))
        again = difference_hash(load_image(encoded(scene(seed, 90, 70).resize((60, 50)), "JPEG", quality=60)))
        assert first != (0, 0)
        alike += max((a ^ b).bit_count() for a, b in zip(first, again, strict=True)) <= DISTANCE
    assert alike >= 27
    assert difference_hash(Image.new("RGB", (50, 50), "white")) == (0, 0)


def test_what_the_model_decides(assistant_dir, tmp_path):
    """An order that its template takes is fine; without a model the strictest templates are asked."""
    turns = [{"from": speaker, "value": speaker} for speaker in ("human", "human", "gpt")]
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": "odd", "conversations": turns}])
    check(ask(path, tmp_path / "out"))
    assert kinds(tmp_path / "out") == {"odd": "role_order"}
    processor = load_processor(assistant_dir)
    check(ask(path, tmp_path / "out", processor=processor))
    assert kinds(tmp_path / "out") == {"odd": "role_order"}
    data = DataConfig(path=str(path), template="vary_opt")
    answer = check(Question(data, tmp_path / "out", processor=processor, workers=0))
    assert answer.sound and answer.facts[0].tokens[0] > 3
