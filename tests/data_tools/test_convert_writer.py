"""The writer: the same bytes however often it was killed, little memory, nothing lost in silence."""

import fcntl
import json
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import convert
import pytest
from convert_readers.interface import Converted, Skipped
from convert_writer import skipped_path, write_records

from mmchat.errors import UserError

SCRIPT = Path(convert.__file__)


def found(number, answer="an answer", image=None):
    turns = [{"from": "human", "value": "<image>\nq" if image else "q"}, {"from": "gpt", "value": answer}]
    images = {"image": image} if image else {}
    return Converted(f"item {number}", {"id": str(number), **images, "conversations": turns})


ITEMS = [found(1), found(2, ""), Skipped("item 3", "3", "cut", "why"), found(4, "é\u2028"), found(5)]


def test_an_interrupted_conversion_goes_on_at_every_byte(tmp_path):
    whole = tmp_path / "whole.jsonl"
    write_records(ITEMS, whole)
    expected, listed = whole.read_bytes(), skipped_path(whole).read_bytes()
    assert expected.count(b"\n") == 3 and listed.count(b"\n") == 2
    for size in range(len(expected) + 1):
        out = tmp_path / f"{size}.jsonl"
        out.with_name(f"{out.name}.part").write_bytes(expected[:size])
        tally = write_records(ITEMS, out)
        assert out.read_bytes() == expected and skipped_path(out).read_bytes() == listed
        assert tally.written == 3 and tally.left_out == {"empty answer": 1, "cut": 1}
    assert not list(tmp_path.glob("*.part"))


def test_a_part_of_another_conversion_is_refused_and_kept(tmp_path):
    out, part = tmp_path / "o.jsonl", tmp_path / "o.jsonl.part"
    write_records(ITEMS, out)
    part.write_bytes(out.read_bytes())
    out.unlink()
    whole = part.read_bytes()
    for items in (ITEMS[3:], ITEMS[:1], [found(1), found(9)]):
        with pytest.raises(UserError, match="was started with another input"):
            write_records(items, out)
        assert part.read_bytes() == whole and not out.exists()


def test_lines_that_are_there_are_not_looked_up_again(tmp_path):
    root, out = tmp_path / "root", tmp_path / "o.jsonl"
    root.mkdir()
    (root / "a.jpg").touch()
    items = [found(1, image="a.jpg"), found(2, image="b.jpg")]
    tally = write_records(items, out, root)
    assert tally.written == 1 and tally.left_out == {"image file missing": 1}
    out.rename(tmp_path / "o.jsonl.part")
    (root / "a.jpg").unlink()
    assert write_records(items, out, root).written == 1


@pytest.mark.parametrize("images", [["a.jpg"] * 2, []])
def test_what_the_schema_refuses_is_left_out(tmp_path, images):
    record = {"id": "x", "image": images, "conversations": [{"from": "human", "value": "<image>" * len(images)}]}
    with pytest.raises(UserError, match="nothing could be converted") as caught:
        write_records([Converted("item 1", record)], tmp_path / "o.jsonl")
    assert "1  invalid record, e.g. item 1 (x)" in str(caught.value)
    assert "nothing to learn" in json.loads(skipped_path(tmp_path / "o.jsonl").read_text())["detail"]


def test_nothing_converted_leaves_the_list_alone(tmp_path):
    with pytest.raises(UserError, match=r"1 items left out, listed in .*o.jsonl.skipped"):
        write_records(ITEMS[2:3], tmp_path / "o.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl.skipped"]


def test_strict_stops_at_the_first_and_can_go_on(tmp_path):
    out = tmp_path / "o.jsonl"
    with pytest.raises(UserError, match=r"^item 2: empty answer, and --strict was given$"):
        write_records(ITEMS, out, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl.part"]
    mended = [ITEMS[0], found(2, "mended")]
    assert write_records(mended, out, strict=True).written == 2
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]


def test_finished_and_foreign_files_are_safe(tmp_path):
    out = tmp_path / "o.jsonl"
    with (tmp_path / "o.jsonl.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(UserError, match="is being written by another conversion"):
            write_records(ITEMS, out)
    write_records(ITEMS, out)
    before = out.read_bytes()
    with pytest.raises(UserError, match="exists; delete"):
        write_records(ITEMS[:1], out)
    assert out.read_bytes() == before


def big_llava(path, records, words=40):
    with path.open("w") as file:
        for number in range(records):
            image = f"{number % 3}.jpg"  # 2.jpg is not there
            value = f"word {number} " * words
            turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": value}]
            file.write("[,"[bool(number)] + json.dumps({"id": str(number), "image": image, "conversations": turns}))
        file.write("]")


def test_a_killed_process_is_resumed_to_the_same_bytes(tmp_path):
    big_llava(tmp_path / "big.json", 20_000)
    for name in ("0.jpg", "1.jpg"):
        (tmp_path / name).touch()

    def command(out):
        where = ["--input", str(tmp_path / "big.json"), "--out", str(out), "--image-root", str(tmp_path)]
        return [sys.executable, str(SCRIPT), "llava_pretrain", *where]

    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    part = tmp_path / "killed.jsonl.part"
    process = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists() and part.stat().st_size > 100_000
    cut = part.stat().st_size
    subprocess.run(command(killed), check=True, capture_output=True)
    convert.main(command(whole)[2:])
    assert cut < whole.stat().st_size
    assert killed.read_bytes() == whole.read_bytes()
    assert skipped_path(killed).read_bytes() == skipped_path(whole).read_bytes()
    assert not list(tmp_path.glob("*.part"))


def big_vqav2(folder, number):
    questions = [{"image_id": n // 4, "question": "What is it?", "question_id": n} for n in range(number)]
    answers = [{"answer": f"a {n}", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    marks = [{"question_id": n, "image_id": n // 4, "answers": answers} for n in reversed(range(number))]
    (folder / "q.json").write_text(json.dumps({"data_subtype": "train2014", "questions": questions}))
    (folder / "a.json").write_text(json.dumps({"annotations": marks}))
    return [folder / "q.json", folder / "a.json"]


def big_gqa(folder, number):
    item = {"imageId": "1", "question": "what?", "answer": "yes", "fullAnswer": "yes " * 200}
    (folder / "g.json").write_text(json.dumps({str(n): item | {"imageId": str(n // 4)} for n in range(number)}))
    return [folder / "g.json"]


@pytest.mark.parametrize("kind", ["llava_instruct", "vqav2", "gqa"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    if kind == "llava_instruct":
        big_llava(tmp_path / "big.json", 4000, words=150)
        inputs = [tmp_path / "big.json"]
    else:
        inputs = big_vqav2(tmp_path, 8000) if kind == "vqav2" else big_gqa(tmp_path, 6000)
    size = sum(path.stat().st_size for path in inputs)
    assert size > 5_000_000
    command = [kind, "--input", *map(str, inputs), "--out", str(tmp_path / "o.jsonl")]
    tracemalloc.start()
    convert.main(command)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000 < size / 3
