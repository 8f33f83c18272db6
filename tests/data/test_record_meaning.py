"""A record is never read as less than it holds: keys that change its meaning are read, or refused by name."""

import json

import pytest
from PIL import Image

from mmchat.data.doctor.findings import KINDS
from mmchat.data.records import Record, Rejected, parse_record, read_record, stored_form
from tests.data.doctoring import command
from tests.data.storing import write_jsonl

ASK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
CHAT = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]


def human(text: str) -> list[dict]:
    return [{"from": "human", "value": text}, ASK[1]]


def user(content) -> list[dict]:
    return [{"role": "user", "content": content}, CHAT[1]]


@pytest.fixture
def root(tmp_path):
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    return tmp_path


REFUSED = {
    "unsupported_media": [
        {"video": "x.mp4", "conversations": human("<video>\nWhat?")},
        {"videos": ["x.mp4"], "messages": CHAT},
        {"audios": ["a.wav"], "messages": CHAT},
        {"audio": {"bytes": b"x", "path": None}, "conversations": ASK},
        {"audio": "a.wav", "texts": [{"user": "What?", "assistant": "A cat."}]},
        {"video_path": "x.mp4", "caption": "A cat."},
        {"image": "x.mp4", "conversations": human("<image>\nWhat?")},
        {"images": ["a.png", "clip.WEBM?start=3"], "conversations": human("<image><image>\nWhat?")},
        {"messages": user([{"type": "video", "video": "x.mp4"}, {"type": "text", "text": "What?"}])},
        {"messages": user([{"type": "video_url", "video_url": {"url": "x.mp4"}}, {"type": "text", "text": "?"}])},
        {"messages": user([{"type": "input_audio", "input_audio": {"data": "UklG"}}])},
        {"messages": user([{"video": ["1.jpg", "2.jpg"]}, {"type": "text", "text": "What?"}])},
        {"messages": [{**CHAT[0], "videos": ["x.mp4"]}, CHAT[1]]},
        {"conversations": human("<video>\nWhat?")},
        {"conversations": human("What?\n<video>")},
        {"conversations": human("Audio 1: <audio>a.wav</audio>\nWhat is said?")},
        {"messages": user("<audio>What is said?")},
    ],
    "preference_data": [
        {"messages": CHAT, "label": False},
        {"messages": CHAT, "label": True},
        {"conversations": ASK, "label": 0},
        {"messages": CHAT, "rejected_response": "A dog."},
        {"conversations": ASK[:1], "chosen": ASK[1], "rejected": {"from": "gpt", "value": "A dog."}},
        {"image": "a.png", "conversations": human("<image>\nWhat?"), "rejected": "A dog."},
        {"chosen": CHAT, "rejected": CHAT},
        {"messages": CHAT, "rejected_messages": CHAT},
        {"messages": CHAT, "kto_tag": False},
    ],
    "tool_definitions": [
        {"messages": CHAT, "tools": [{"type": "function", "function": {"name": "add"}}]},
        {"conversations": ASK, "tools": '[{"name": "add"}]'},
        {"messages": CHAT, "functions": [{"name": "add"}]},
    ],
    "grounding_objects": [
        {
            "image": "a.png",
            "conversations": [*human("<image>\nWhere?")[:1], {"from": "gpt", "value": "At <bbox>."}],
            "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]},
        },
        {"images": ["a.png"], "messages": user("<image>Where is <ref-object>?"), "objects": {"ref": ["cat"]}},
        {"conversations": human("What is at <bbox>?"), "objects": '[{"caption": "cat", "bbox": [1, 2, 3, 4]}]'},
        {"texts": [{"user": "Where?", "assistant": "<bbox>"}], "bbox": [[1, 2, 3, 4]]},
    ],
    "unread_key": [
        {"messages": [CHAT[0], {**CHAT[1], "tool_calls": [{"id": "1"}]}]},
        {"messages": [CHAT[0], {**CHAT[1], "reasoning_content": "It has whiskers."}]},
        {"messages": [{**CHAT[0], "images": ["a.png"]}, CHAT[1]]},
        {"conversations": [{**ASK[0], "image": "a.png"}, ASK[1]]},
        {"conversations": [ASK[0], {**ASK[1], "loss_scale": 0.5}]},
        {"texts": [{"user": "What?", "assistant": "A cat.", "reasoning": "It has whiskers."}]},
    ],
    "slot_mismatch": [
        {"images": ["a.png"], "texts": [{"user": "<image><image>\nQ", "assistant": "A"}]},
        {"images": ["a.png", "b.png"], "texts": [{"user": "<image>\nQ", "assistant": "A"}]},
        {"texts": [{"user": "<image>\nQ", "assistant": "A"}]},
        {"messages": user("<image>\nWhat?")},
    ],
    "malformed_record": [
        {"image": "a.png", "conversations": human("<image>\nand <img>b.png</img>?")},
        {"conversations": [ASK[0], {"from": "gpt", "value": "<img>a.png</img>"}]},
        {"messages": CHAT, "system": ["Be brief."]},
    ],
    "missing_image": [{"conversations": human("Picture 1: <img>gone.png</img>\nWhat?")}],
}
CASES = [(kind, item) for kind, items in REFUSED.items() for item in items]


@pytest.mark.parametrize(("kind", "item"), CASES, ids=[f"{kind}-{n}" for n, (kind, _) in enumerate(CASES)])
def test_refused_by_its_kind(root, kind, item):
    found = read_record(item, "data.json:record 2", root)
    assert isinstance(found, Rejected)
    assert (found.kind or "malformed_record") == kind, found.reason
    assert KINDS[kind].severity == "error"


def parts(record: Record) -> list[tuple]:
    return [turn.parts for turn in record.turns if turn.role == "user"]


READ = {
    "Qwen-VL": ({"conversations": human("Picture 1: <img>a.png</img>\nQ")}, [("Picture 1: ", None, "\nQ")]),
    "Qwen-VL, two": (
        {"conversations": human("Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nQ")},
        [("Picture 1: ", None, "\nPicture 2: ", None, "\nQ")],
    ),
    "in messages": ({"messages": user("<img>a.png</img>Q")}, [(None, "\n", "Q")]),
    "the_cauldron, marked": (
        {"images": ["a.png"], "texts": [{"user": "<image>\nQ", "assistant": "A"}]},
        [(None, "\nQ")],
    ),
    "the_cauldron, marked later": (
        {
            "images": ["a.png", "b.png"],
            "texts": [{"user": "<image>\nQ", "assistant": "A"}, {"user": "And <image>\n?", "assistant": "B"}],
        },
        [(None, "\nQ"), ("And ", None, "\n?")],
    ),
    "the_cauldron": ({"images": ["a.png"], "texts": [{"user": "Q", "assistant": "A"}]}, [(None, "\n", "Q")]),
    "HTML": (
        {"conversations": human("<video>\n<source src='a'>\n</video> Why?")},
        [("<video>\n<source src='a'>\n</video> Why?",)],
    ),
    "words": ({"messages": user("What does <video> mean in HTML?")}, [("What does <video> mean in HTML?",)]),
    "a box in words": ({"messages": user("Where is <bbox>?")}, [("Where is <bbox>?",)]),
    "objects": ({"messages": CHAT, "objects": {"bbox": [[1, 2, 3, 4]]}}, [("What?",)]),
}


@pytest.mark.parametrize("name", READ)
def test_read(root, name):
    item, expected = READ[name]
    record = parse_record(item, "there:1", root)
    assert parts(record) == expected
    assert len(record.images) == sum(one.count(None) for one in expected)
    stored = stored_form(record)
    again = parse_record({**stored, "images": list(record.images)} if record.images else stored, "there:1", root)
    assert again.turns == record.turns


def test_what_arrow_fills_in_is_empty(root):
    empty = {"video": None, "videos": [], "audio": "", "tools": "[]", "chosen": None, "objects": {"bbox": []}}
    turns = [{**turn, "tool_calls": None, "images": [], "loss": None} for turn in CHAT]
    assert parse_record({"messages": turns, **empty, "label": None}, "there:1", root).answers == ["A cat."]
    assert parse_record({"image": "a.png", "label": "cat"}, "there:1", root).answers == ["cat"]


@pytest.mark.parametrize(
    ("mark", "train"),
    [({"loss": False}, False), ({"loss": 0}, False), ({"loss": True}, True), ({"training": False}, False)],
)
def test_answers_left_out_of_the_loss(root, mark, train):
    for key, first, last in (("messages", *CHAT), ("conversations", *ASK)):
        item = {key: [{**first, "loss": True} if "loss" in mark else first, {**last, **mark}]}
        assert [turn.train for turn in parse_record(item, "there:1", root).turns] == [False, train]


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_message_beside_any_turns(root, key):
    for item in (
        {"messages": CHAT},
        {"conversations": ASK},
        {"conversations": CHAT},
        {"texts": [{"user": "What?", "assistant": "A cat."}]},
    ):
        record = parse_record({**item, key: "Be brief."}, "there:1", root)
        assert [(turn.role, turn.text) for turn in record.turns] == [
            ("system", "Be brief."),
            ("user", "What?"),
            ("assistant", "A cat."),
        ]
        assert key not in record.extra


def test_keys_that_do_not_matter_are_listed(root):
    turns = [{**CHAT[0], "id": 5}, {**CHAT[1], "model": "x", "name": None}]
    record = parse_record({"id": "1", "messages": turns, "source": "web", "score": None}, "there:1", root)
    assert record.unread_keys == ["source", "turn.id", "turn.model"]


def test_the_doctor_counts_keys_that_do_not_matter(tmp_path, capsys):
    turns = [{**CHAT[0], "id": 5}, CHAT[1]]
    items = [{"messages": turns, "source": f"s{n}", "score": None, "<b>`": 1} for n in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", [*items, {"messages": CHAT, "source": "x"}])
    _, out, _ = command(capsys, path, "--out", tmp_path / "check", "--workers", 0)
    assert "not read: source (4), <b>` (3), turn.id (3)" in out
    counts = json.loads((tmp_path / "check" / "findings.json").read_text())
    assert counts["unread_key/source"] == 4 and counts["unread_key/turn.id"] == 3
    assert "unread_key/score" not in counts
    assert "- `source`: 4" in (tmp_path / "check" / "report.md").read_text()
    assert "<li>&lt;b&gt;`: 3</li>" in (tmp_path / "check" / "report.html").read_text()
