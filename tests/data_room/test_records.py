"""Every malformed record is rejected with its place and the reason; the others are read."""

import json
from pathlib import Path

import pytest

from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Record, Rejected, parse_record, read_records, write_records
from mmchat.errors import UserError

GOOD = {
    "id": "7",
    "image": "0.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Noise."}],
}


def turns(*values):
    return [{"from": speaker, "value": value} for speaker, value in zip(("human", "gpt") * 2, values, strict=False)]


MALFORMED = {
    "list": ([], "expected an object with id, image and conversations, found list"),
    "both": ({**GOOD, "images": ["0.png"]}, 'has both "image" and "images"; expected one of them'),
    "image-number": ({**GOOD, "image": 5}, '"image" must be a path or a list of paths, found 5'),
    "image-null": ({**GOOD, "image": None}, '"image" must be a path or a list of paths, found None'),
    "image-mixed": ({**GOOD, "image": ["0.png", 1]}, '"image" must be a path or a list of paths'),
    "no-turns": ({**GOOD, "conversations": []}, '"conversations" must be a non-empty list of turns'),
    "turns-missing": ({"id": "7", "image": "0.png"}, '"conversations" must be a non-empty list of turns, found None'),
    "turn-text": ({**GOOD, "conversations": ["hello"]}, 'turn 1 must be {"from": ..., "value": text}'),
    "value-number": ({**GOOD, "conversations": [*turns("<image>"), {"from": "gpt", "value": 3}]}, "turn 2 must be"),
    "no-from": ({**GOOD, "conversations": [{"value": "<image>"}]}, "turn 1 must be"),
    "speaker": ({**GOOD, "conversations": [{"from": "user", "value": "a"}]}, "from 'user'; expected one of system,"),
    "no-answer": ({**GOOD, "conversations": turns("<image>")}, "has no gpt turn, so there is nothing to learn"),
    "two-slots": ({**GOOD, "conversations": turns("<image><image>", "a")}, "2 <image> in the human turns but 1 images"),
    "no-slot": ({**GOOD, "conversations": turns("What?", "<image>")}, "0 <image> in the human turns but 1 images"),
    "no-image": ({**GOOD, "image": []}, "1 <image> in the human turns but 0 images"),
    "missing": ({**GOOD, "image": "9.png"}, "9.png does not exist"),
    "folder": ({**GOOD, "image": "."}, "does not exist"),
    "outside": ({**GOOD, "image": "../0.png"}, "leaves the image root"),
    "absolute": ({**GOOD, "image": "/etc/passwd"}, "leaves the image root"),
    "null-byte": ({**GOOD, "image": "a\0.png"}, "null character"),
    "endless": ({**GOOD, "image": "x" * 5000}, "cannot be looked up: File name too long"),
}


@pytest.fixture
def root(tmp_path, picture):
    picture().save(tmp_path / "0.png")
    return tmp_path


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_malformed_records(root, name, suffix):
    item, reason = MALFORMED[name]
    path = root / f"data.{suffix}"
    write_records(path, [GOOD, item, GOOD])
    good, bad, other = read_records(path, root)
    assert isinstance(good, Record)
    assert isinstance(other, Record)
    assert bad.where == (f"{path}:2" if suffix == "jsonl" else f"{path}:record 2")
    assert reason in bad.reason
    assert path.name not in bad.reason  # `where` says it already
    assert bad.id == ("7" if isinstance(item, dict) else "")
    with pytest.raises(UserError, match=r"^there:1: "):
        parse_record(item, "there:1", root)


def test_good_records(root, tiny_records):
    records = list(read_records(tiny_records, root))
    assert [record.images for record in records] == [(), ("0.png",), ("1.png",), ("2.png", "3.png")]
    assert [record.id for record in records] == ["text", "first", "second", "pair"]
    record = parse_record({**GOOD, "kinds": ["what"], "source": {"a": 1}}, "there:1", root)
    assert record.extra == {"kinds": ["what"], "source": {"a": 1}}
    del (nameless := dict(GOOD))["id"]
    assert parse_record(nameless, "there:1", root).id == "there:1"


def test_an_array_that_is_no_json_names_the_line(root):
    path = root / "data.json"
    lines = ["[", *['{"id": "a"},'] * 5, '{"id": },', "]"]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"data\.json:7: invalid JSON: Expecting value at column 8; .*\.jsonl"):
        list(read_records(path, root))
    path.write_text('[{"id": "a')
    with pytest.raises(UserError, match=r"data\.json:1: invalid JSON: Unterminated string starting at column 9; "):
        list(read_records(path, root))


def test_a_bad_line_of_jsonl_is_rejected_alone(root):
    path = root / "data.jsonl"
    lines = [json.dumps({**GOOD, "id": str(number)}) for number in range(1, 10)]
    lines[6] = lines[6][:-5]
    lines[3] = ""
    path.write_text("\n".join(lines))
    found = list(read_records(path, root))
    bad = [item for item in found if isinstance(item, Rejected)]
    assert [item.where for item in bad] == [f"{path}:7"]
    assert bad[0].reason.startswith("invalid JSON: ")
    assert [item.id for item in found if isinstance(item, Record)] == ["1", "2", "3", "5", "6", "8", "9"]


def test_files_that_are_no_records(root):
    with pytest.raises(UserError, match=r"data file .*nowhere\.json does not exist"):
        list(read_records(root / "nowhere.json", root))
    (root / "object.json").write_text("{}")
    with pytest.raises(UserError, match="must hold a JSON array of records, found dict"):
        list(read_records(root / "object.json", root))
    for suffix in ("json", "jsonl"):
        path = root / f"latin.{suffix}"
        path.write_bytes('["é"]'.encode("latin-1"))
        with pytest.raises(UserError, match=rf"latin\.{suffix} is not UTF-8 text"):
            list(read_records(path, root))
    with pytest.raises(UserError, match="is a folder"):
        list(read_records(root, root))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_written_records_read_back(root, suffix):
    path = root / "deep" / f"data.{suffix}"
    records = [{**GOOD, "conversations": turns("<image>\n\u2028é", "\u4f60\n")}, GOOD]
    write_records(path, records)
    assert [record.conversations for record in read_records(path, root)] == [r["conversations"] for r in records]
    assert len(path.read_text().split("\n")) == (3 if suffix == "jsonl" else 5)


def test_quarantine_stops_or_skips(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    bad = Rejected("data.json:record 3", "x", "broken\u2028picture")
    with pytest.raises(UserError, match=r"^data\.json:record 3: broken.picture\n.*on_bad_sample to skip"):
        Quarantine(path, "stop").add(bad)
    assert not path.exists()

    quarantine = Quarantine(path, "skip")
    for item in (bad, bad, Rejected("data.json:record 4", "y", "missing"), bad):
        quarantine.add(item)
    assert len(quarantine) == 2
    # A resumed run goes on with the same file, even where it was killed while writing.
    with path.open("ab") as file:
        file.write('{"where": "é'.encode()[:-1])
    resumed = Quarantine(path, "skip")
    assert len(resumed) == 2
    resumed.add(bad)
    resumed.add(Rejected("data.json:record 9", "z", "cut off"))
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert [line["where"][-1] for line in lines] == ["3", "4", "9"]
    assert lines[0] == {"where": bad.where, "id": "x", "reason": bad.reason}


def test_quarantine_counts_on_other_ranks(tmp_path: Path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", "skip", writes=False)
    quarantine.add(Rejected("a:1", "", "why"))
    assert len(quarantine) == 1
    assert not list(tmp_path.iterdir())
