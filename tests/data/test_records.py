"""Every malformed record is rejected with its reason; every layout that people use becomes the same record."""

import json
from pathlib import Path

import pytest

from mmchat.data.image_refs import ImageBytes, ImageDataUri, ImageFile, ImageUrl
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Rejected, limit_turns, parse_record, prepared, read_record, stored_form
from mmchat.errors import UserError

GOOD = {
    "id": "7",
    "image": "0.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Noise."}],
}


def turns(*values):
    return [{"from": speaker, "value": value} for speaker, value in zip(("human", "gpt") * 2, values, strict=False)]


MALFORMED = {
    "list": ([], "expected an object with an image and a conversation, found list"),
    "both": ({**GOOD, "images": ["1.png"]}, 'has both "image" and "images"; expected one of them'),
    "image-number": ({**GOOD, "image": 5}, '"image" must be a path or a list of paths, found 5'),
    "image-null": ({**GOOD, "image": None}, "1 <image> in the human turns but 0 images"),
    "image-mixed": ({**GOOD, "image": ["0.png", 1]}, '"image" must be a path or a list of paths'),
    "no-turns": ({**GOOD, "conversations": []}, '"conversations" must be a non-empty list of turns'),
    "turns-missing": ({"id": "7", "image": "0.png"}, '"conversations" (or messages, texts, caption) is missing'),
    "two-kinds": ({**GOOD, "messages": []}, 'has both "conversations" and "messages"; expected one of them'),
    "turn-text": ({**GOOD, "conversations": ["hello"]}, 'turn 1 must be {"from": ..., "value": text}'),
    "value-number": ({**GOOD, "conversations": [*turns("<image>"), {"from": "gpt", "value": 3}]}, "turn 2 must be"),
    "no-from": ({**GOOD, "conversations": [{"value": "<image>"}]}, "turn 1 must be"),
    "speaker": (
        {**GOOD, "conversations": [{"from": "narrator", "value": "a"}]},
        "from 'narrator'; expected one of human",
    ),
    "speaker-list": ({**GOOD, "conversations": [{"from": ["gpt"], "value": "a"}]}, "from ['gpt']; expected one of"),
    "train": ({**GOOD, "conversations": [*turns("<image>"), {"from": "gpt", "value": "a", "train": "no"}]}, "train"),
    "role": ({"messages": [{"role": "narrator", "content": "a"}]}, "turn 1 has the role 'narrator'; expected one of"),
    "content": (
        {"messages": [{"role": "user", "content": 5}]},
        'turn 1 must be {"role": ..., "content": text or parts}',
    ),
    "part": ({"messages": [{"role": "user", "content": [{"type": "shape"}]}]}, "neither text nor image"),
    "image-twice": (
        {"image": "0.png", "messages": [{"role": "user", "content": [{"type": "image", "image": "0.png"}]}]},
        "images both in the messages and in the record",
    ),
    "exchange": ({"texts": [{"user": "a"}]}, 'exchange 1 must be {"user": text, "assistant": text}'),
    "caption-alone": ({"caption": "a cat"}, "a caption needs one image, found 0"),
    "http": ({**GOOD, "image": "https://example.org/a.png"}, "is a URL; set allow_http to fetch it"),
    "no-answer": ({**GOOD, "conversations": turns("<image>")}, "has no gpt turn, so there is nothing to learn"),
    "two-slots": ({**GOOD, "conversations": turns("<image><image>", "a")}, "2 <image> in the human turns but 1 images"),
    "no-slot": ({**GOOD, "conversations": turns("What?", "<image>")}, "0 <image> in the human turns but 1 images"),
    "no-image": ({**GOOD, "image": []}, "1 <image> in the human turns but 0 images"),
    "missing": ({**GOOD, "image": "9.png"}, "9.png does not exist"),
    "folder": ({**GOOD, "image": "."}, "does not exist"),
    "outside": ({**GOOD, "image": "../0.png"}, "leaves the image root"),
    "absolute": ({**GOOD, "image": "/etc/passwd"}, "leaves the image root"),
    "null-byte": ({**GOOD, "image": "a\0.png"}, "null character"),
    "endless": ({**GOOD, "image": "x" * 5000}, "cannot be found: File name too long"),
}


@pytest.fixture
def root(tmp_path, make_image):
    make_image().save(tmp_path / "0.png")
    return tmp_path


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_records(root, name):
    item, reason = MALFORMED[name]
    bad = read_record(item, "data.json:record 2", root)
    assert isinstance(bad, Rejected)
    assert bad.where == "data.json:record 2"
    assert reason in bad.reason
    assert "data.json" not in bad.reason  # `where` says it already
    assert bad.id == ("7" if isinstance(item, dict) and "id" in item else "")
    with pytest.raises(UserError, match=r"^there:1: "):
        parse_record(item, "there:1", root)


def test_what_a_record_keeps(root):
    record = parse_record({**GOOD, "kinds": ["what"], "source": {"a": 1}}, "there:1", root)
    assert record.extra == {"kinds": ["what"], "source": {"a": 1}}
    assert record.images == (ImageFile(str(root), "0.png"),)
    del (nameless := dict(GOOD))["id"]
    assert parse_record(nameless, "there:1", root).id == "there:1"
    assert parse_record({**GOOD, "id": 0}, "there:1", root).id == "0"


QUESTION, ANSWER = "\nWhat?", "Noise."
PNG = "data:image/png;base64,aGVsbG8="
PARTS = [{"type": "image"}, {"type": "text", "text": QUESTION}]
CHAT = [{"role": "user", "content": PARTS}, {"role": "assistant", "content": ANSWER}]
SAME = {
    "llava": GOOD,
    "llava list": {**GOOD, "image": ["0.png"]},
    "llava images": {"images": ["0.png"], "conversations": GOOD["conversations"]},
    "sharegpt user": {**GOOD, "conversations": [{"from": "user", "value": "<image>\nWhat?"}, GOOD["conversations"][1]]},
    "sharegpt roles": {
        "image": "0.png",
        "conversations": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": ANSWER}],
    },
    "json column": {"image": "0.png", "conversations": json.dumps(GOOD["conversations"])},
    "hf messages": {"images": ["0.png"], "messages": CHAT},
    "hf inline": {"messages": [{"role": "user", "content": [{"type": "image", "image": "0.png"}, PARTS[1]]}, CHAT[1]]},
    "hf nulls": {
        "images": [{"path": "0.png", "bytes": None}],
        "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}], "train": None},
        ],
    },
    "openai": {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "0.png"}}, PARTS[1]]},
            CHAT[1],
        ]
    },
    "llama-factory": {
        "images": ["0.png"],
        "messages": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": ANSWER}],
    },
    "the_cauldron": {"images": ["0.png"], "texts": [{"user": "What?", "assistant": ANSWER, "source": "x"}]},
}


@pytest.mark.parametrize("layout", SAME)
def test_every_layout_is_the_same_record(root, layout):
    record = parse_record(SAME[layout], "there:1", root)
    question, answer = record.turns
    assert (question.role, "".join(part or "" for part in question.parts)) == ("user", QUESTION)
    assert question.parts[0] in (None, "") and question.parts.count(None) == 1
    assert (answer.role, answer.parts, answer.train) == ("assistant", (ANSWER,), True)
    assert record.images == (ImageFile(str(root), "0.png"),)
    again = parse_record({**stored_form(record), "images": list(record.images)}, "there:1", root)
    assert (again.turns, again.images) == (record.turns, record.images)


@pytest.mark.parametrize(
    "keys", [("image", "caption"), ("filepath", "title"), ("image_path", "text"), ("url", "caption")]
)
def test_captions(root, keys):
    record = parse_record({keys[0]: "0.png", keys[1]: "A cat."}, "there:1", root)
    assert [(turn.role, turn.parts) for turn in record.turns] == [("user", (None,)), ("assistant", ("A cat.",))]


def test_images_in_every_form(root):
    def images(entry, **options):
        return parse_record({**GOOD, "image": entry}, "there:1", root, **options).images

    assert images(b"abc") == (ImageBytes(b"abc"),)
    assert images({"bytes": b"abc", "path": "x.png"}) == (ImageBytes(b"abc", "x.png"),)
    assert images(PNG) == (ImageDataUri(PNG),)
    assert images(PNG)[0].read() == b"hello"
    assert images("http://a/b.png", allow_http=True) == (ImageUrl("http://a/b.png"),)
    for uri in ("data:image/png,hello", "data:image/png;base64,***"):
        with pytest.raises(UserError, match="base64"):
            images(uri)[0].read()


def test_system_tools_and_marks(root):
    item = {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "function_call", "value": "add(2, 2)", "train": False},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "Four.", "weight": 1},
        ],
    }
    turns = parse_record(item, "there:1", root).turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert [turn.train for turn in turns] == [False, False, False, False, True]


def test_only_the_first_exchanges(root):
    values = ("<image>a", "b", "c<image>", "d")
    item = {"image": ["0.png", PNG], "conversations": turns(*values)}
    record = parse_record(item, "there:1", root)
    assert limit_turns(record, 2) == record == limit_turns(record, 9)
    first = limit_turns(record, 1)
    assert [turn.parts for turn in first.turns] == [("", None, "a"), ("b",)]
    assert first.images == record.images[:1]


def test_quarantine_stops_or_skips(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    bad = Rejected("data.json:record 3", "x", "broken\u2028image")
    with pytest.raises(UserError, match=r"^data\.json:record 3: broken.image\n.*on_bad_sample to skip"):
        Quarantine(path, "stop").add(bad)
    assert not path.exists()

    quarantine = Quarantine(path, "skip")
    for item in (bad, bad, Rejected("data.json:record 4", "y", "missing"), bad):
        quarantine.add(item)
    assert len(quarantine) == 2
    # A resumed run continues the same file, even if it was killed while writing.
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


def test_a_system_key_beside_turns_of_either_dialect(root):
    chat = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Yes."}]
    data = [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "Yes."}]
    for turns in (chat, data):
        record = parse_record({"conversations": turns, "system": "Be brief."}, "there:1", root)
        assert [(turn.role, turn.text) for turn in record.turns][:2] == [("system", "Be brief."), ("user", "Hm?")]
        own = [{**turns[0], "from": "system", "value": "Own."} if "from" in turns[0] else turns[0] | {"role": "system"}]
        record = parse_record({"conversations": own + turns, "system": "Be brief."}, "there:1", root)
        assert [turn.role for turn in record.turns] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("written", "placed"),
    [
        ("What is <image> this?\n", "<image>\nWhat is  this?"),
        ("What?\n<image>", "<image>\nWhat?"),
        ("<image>\nWhat?", "<image>\nWhat?"),
        (" <image> ", "<image>"),
        ("<image>a<image>b", "<image>a<image>b"),  # LLaVA-NeXT leaves several as they are
        ("What?", "What?"),
    ],
)
def test_images_go_to_the_front_as_in_llava(root, written, placed):
    images = ["0.png"] * written.count("<image>")
    record = parse_record({"image": images, "conversations": turns(written, "a <image>")}, "there:1", root)
    question, answer = prepared(record, image_place="front").turns
    assert "".join("<image>" if part is None else part for part in question.parts) == placed
    assert answer.parts == ("a <image>",)
    assert prepared(record) == record
