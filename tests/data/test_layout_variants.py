"""Other spellings of every layout that is read or refused by name: what the kinds promise, not their examples."""

import base64
import unicodedata

import pytest

from mmchat.data.records import Rejected, images_to_front, parse_record, read_record
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from tests.data.dialogue import dialogue

TURNS = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
CHAT = [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "A"}]
TEXT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
TWO = ["a.png", "sub/b.png"]
ASKED, PLAIN = [("user", "<>\nQ"), ("assistant", "A")], [("user", "Q"), ("assistant", "A")]
CAPTION = [("user", "<>"), ("assistant", "A")]


@pytest.fixture(scope="module")
def root(tmp_path_factory, png):
    folder = tmp_path_factory.mktemp("variants")
    for name in ("a.png", "sub/b.png", unicodedata.normalize("NFD", "é.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png)
    return folder


def parts(*content):
    return [{"role": "user", "content": [*content, {"type": "text", "text": "Q"}]}, TEXT[1]]


IN_TEXT = "Picture 1: <img>a.png</img>\nPicture 2: <img>sub/b.png</img>\nQ"
READ = {
    # a path inside the text
    "two paths in the text": (
        {"conversations": [{"from": "user", "value": IN_TEXT}, {"from": "assistant", "value": "A"}]},
        [("user", "Picture 1: <>\nPicture 2: <>\nQ"), ("assistant", "A")],
    ),
    "a path in the text of a message": ({"messages": [{**CHAT[0], "content": "Q <img>a.png</img>"}, CHAT[1]]}, None),
    # keys beside messages
    "system beside messages": ({"system": "S", "messages": TEXT}, [("system", "S"), *PLAIN]),
    "system prompt beside conversations": (
        {"system": "S", "image": "a.png", "conversations": TURNS},
        [("system", "S"), *ASKED],
    ),
    "tools that are empty": ({"tools": "[]", "messages": TEXT}, PLAIN),
    "objects without marks": ({"objects": {"ref": [], "bbox": []}, "images": ["a.png"], "messages": CHAT}, ASKED),
    "a label of a table": ({"image": "a.png", "label": 0}, [("user", "<>"), ("assistant", "0")]),
    # the_cauldron
    "marks in two exchanges": (
        {"images": TWO, "texts": [{"user": "<image>Q", "assistant": "A"}, {"user": "R<image>", "assistant": "B"}]},
        [*ASKED, ("user", "R\n<>"), ("assistant", "B")],
    ),
    "texts with a source": ({"images": ["a.png"], "texts": [{"user": "Q", "assistant": "A", "source": "x"}]}, ASKED),
    # shards and columns
    "webp column": ({"__key__": "1", "webp": b"x", "txt": "A"}, CAPTION),
    "input and output": ({"__key__": "1", "input.png": b"x", "output.txt": "A"}, CAPTION),
    "a list of messages": ({"__key__": "1", "png": b"x", "json": CHAT}, ASKED),
    "an object with turns": ({"__key__": "1", "jpg": b"x", "json": {"conversations": TURNS}}, ASKED),
    "a class as text": ({"__key__": "1", "png": b"x", "cls": "7\n"}, [("user", "<>"), ("assistant", "7")]),
    "a class by name": ({"__key__": "1", "png": b"x", "cls": "cat"}, [("user", "<>"), ("assistant", "cat")]),
    # text alone
    "image null": ({"image": None, "messages": TEXT}, PLAIN),
    "an empty struct": (
        {"image": {"bytes": None, "path": None}, "conversations": [{**TURNS[0], "value": "Q"}, TURNS[1]]},
        PLAIN,
    ),
    "a list of nothing": ({"images": ["", None], "messages": TEXT}, PLAIN),
    # speakers and spellings
    "capital roles": (
        {
            "image": "a.png",
            "messages": [{"role": "User", "content": "<image>Q"}, {"role": "ASSISTANT", "content": "A"}],
        },
        ASKED,
    ),
    "from and content": (
        {
            "image": "a.png",
            "conversations": [{"from": "USER", "content": "<image>\nQ"}, {"from": "Assistant", "content": "A"}],
        },
        ASKED,
    ),
    "developer": ({"messages": [{"role": "developer", "content": "S"}, *TEXT]}, [("system", "S"), *PLAIN]),
    "input_image as an object": ({"messages": parts({"type": "input_image", "image_url": {"url": "a.png"}})}, ASKED),
    "image_path of several": (
        {"image_path": TWO, "conversations": [{"from": "human", "value": "<image><image>Q"}, TURNS[1]]},
        [("user", "<><>Q"), ("assistant", "A")],
    ),
    "query with history": (
        {"query": "Q", "response": "A", "history": [["R", "B"]], "images": ["a.png"]},
        [("user", "<>\nR"), ("assistant", "B"), *PLAIN],
    ),
    "alpaca with an image": (
        {"instruction": "Q", "input": "about", "output": "A", "image": "a.png"},
        [("user", "<>\nQ\nabout"), ("assistant", "A")],
    ),
    "prompt and completion": ({"prompt": "Q", "completion": "A"}, PLAIN),
    "hint and three options": (
        {"index": "1", "image": "a.png", "hint": "H", "question": "Q", "A": "x", "B": "y", "C": "z", "answer": "A"},
        [("user", "<>\nH\nQ\nA. x\nB. y\nC. z"), ("assistant", "A")],
    ),
    "title and filepath": ({"filepath": "a.png", "title": "A"}, CAPTION),
    "a caption of one in a list": ({"image": "a.png", "caption": ["A"]}, CAPTION),
    # places
    "file: with one slash": (None, CAPTION),
    "file://localhost": (None, CAPTION),
    "backslashes": ({"image": "sub\\b.png", "caption": "A"}, CAPTION),
    "NFC for NFD": ({"image": unicodedata.normalize("NFC", "é.png"), "caption": "A"}, CAPTION),
}


@pytest.mark.parametrize("name", READ)
def test_read(name, root):
    row, expected = READ[name]
    if row is None:
        start = "file://localhost" if "localhost" in name else "file:"
        row = {"image": f"{start}{root}/a.png", "caption": "A"}
    record = parse_record(row, "there:1", root)
    assert dialogue(record) == (expected or [("user", "Q <>"), ("assistant", "A")])
    assert len(record.images) == sum(turn.parts.count(None) for turn in record.turns)
    if all(not hasattr(image, "data") for image in record.images):
        assert {image.open().size for image in record.images} <= {(40, 30)}


REFUSED = {
    # video and audio
    "a video part": ({"messages": parts({"type": "video", "video": "x.mp4"})}, "unsupported_media"),
    "audios": ({"audios": ["a.wav"], "messages": [{**TEXT[0], "content": "<audio>Q"}, TEXT[1]]}, "unsupported_media"),
    "a video as an image": ({"image": "clip.MOV", "conversations": TURNS}, "unsupported_media"),
    "an input_audio part": (
        {"messages": parts({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})},
        "unsupported_media",
    ),
    # preference data
    "chosen and rejected": ({"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": TURNS[1]}, "preference_data"),
    "rejected_response": ({"messages": TEXT, "rejected_response": "B"}, "preference_data"),
    "KTO true": ({"messages": TEXT, "label": True}, "preference_data"),
    "KTO tag": ({"conversations": TURNS, "image": "a.png", "kto_tag": False}, "preference_data"),
    # tools and boxes
    "tools as text": ({"messages": TEXT, "tools": '[{"name": "f"}]'}, "tool_definitions"),
    "functions": ({"messages": TEXT, "functions": [{"name": "f"}]}, "tool_definitions"),
    "boxes": (
        {
            "images": ["a.png"],
            "messages": [CHAT[0], {**CHAT[1], "content": "<bbox>"}],
            "objects": {"bbox": [[1, 2, 3, 4]]},
        },
        "grounding_objects",
    ),
    "references": (
        {
            "images": ["a.png"],
            "messages": [{**CHAT[0], "content": "<image><ref-object>?"}, CHAT[1]],
            "objects": {"ref": ["x"]},
        },
        "grounding_objects",
    ),
    "tool calls of a turn": ({"messages": [TEXT[0], {**TEXT[1], "tool_calls": [{"id": "1"}]}]}, "unread_key"),
    # the_cauldron
    "more images than marks": ({"images": TWO, "texts": [{"user": "<image>Q", "assistant": "A"}]}, "slot_mismatch"),
    "more marks than images": (
        {"images": ["a.png"], "texts": [{"user": "<image><image>Q", "assistant": "A"}]},
        "slot_mismatch",
    ),
    # downloads
    "failed": (
        {"image": None, "url": "http://e.org/a", "caption": "A", "key": "1", "status": "failed_to_resize"},
        "not_downloaded",
    ),
    "LAION": ({"URL": "http://e.org/a.jpg", "TEXT": "A"}, "not_fetched"),
    # places
    "file:// outside": ({"image": "file:///etc/hostname", "caption": "A"}, "path_outside_root"),
    "another case": ({"image": "A.PNG", "caption": "A"}, "missing_image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, root):
    row, kind = REFUSED[name]
    record = read_record(row, "there:1", root)
    assert isinstance(record, Rejected) and record.kind == kind, record
    assert "\n" not in record.reason


@pytest.mark.parametrize("mark", [{"loss": False}, {"loss": 0}, {"train": False}, {"weight": 0}])
@pytest.mark.parametrize("dialect", ["from", "role"])
def test_an_answer_without_loss(root, mark, dialect):
    first = [{"from": "human", "value": "R"}, {"from": "gpt", "value": "B", **mark}]
    second = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    if dialect == "role":
        first = [{"role": "user", "content": "R"}, {"role": "assistant", "content": "B", **mark}]
        second = TEXT
    record = parse_record({"conversations": first + second}, "there:1", root)
    assert [turn.train for turn in record.turns if turn.role == "assistant"] == [False, True]


WRITTEN = {
    "64 with CRLF": lambda text: "\r\n".join(text[n : n + 64] for n in range(0, len(text), 64)),
    "76, no padding": lambda text: "\n".join(text[n : n + 76] for n in range(0, len(text), 76)).rstrip("="),
    "URL's alphabet": lambda text: text.replace("+", "-").replace("/", "_"),
    "blanks": lambda text: f" {text} ",
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("start", ["", "data:image/png;base64, ", "data:;base64,"])
def test_base64(root, png, name, start):
    text = WRITTEN[name](base64.b64encode(png).decode())
    record = parse_record({"image": start + text, "caption": "A"}, "there:1", root)
    assert record.images[0].open().size == (40, 30)


@pytest.mark.parametrize("text", ["Q<image>", "Q <image> R", "<image>Q"])
def test_the_image_in_front(root, text):
    turns = [{"from": "human", "value": text}, TURNS[1], {"from": "human", "value": "R"}, TURNS[1]]
    record = images_to_front(parse_record({"image": "a.png", "conversations": turns}, "there:1", root))
    expected = {"Q<image>": "<>\nQ", "Q <image> R": "<>\nQ  R", "<image>Q": "<>\nQ"}[text]
    assert dialogue(record)[0] == ("user", expected) and dialogue(record)[2] == ("user", "R")


@pytest.mark.parametrize("key", ["caption", "captions"])
def test_three_captions(root, key):
    record = parse_record({"image": "a.png", key: ["x", "y", "z"]}, "there:1", root)
    assert [one.answers for one in record.variants] == [["x"], ["y"], ["z"]]


@pytest.mark.parametrize("junk", ["@eaDir/a.png", "cat/.DS_Store", "cat/._1.PNG", ".git/x.png", "__MACOSX/cat/._1.png"])
def test_junk_is_no_class(tmp_path, png, junk):
    for name in ("cat/1.JPEG", "dog/2.jfif", junk):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png)
    assert [record.answers[0] for record in open_source(tmp_path)] == ["cat", "dog"]


@pytest.mark.parametrize("splits", [("Training", "Test"), ("train", "valid"), ("train_set", "test_set")])
def test_splits_are_no_classes(tmp_path, png, splits):
    for split in splits:
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "1.png").write_bytes(png)
    with pytest.raises(UserError, match="holds the splits"):
        open_source(tmp_path)


def test_a_link_to_a_folder_above_ends(tmp_path, png):
    (tmp_path / "data" / "cat" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "deep" / "1.png").write_bytes(png)
    (tmp_path / "data" / "cat" / "deep" / "loop").symlink_to(tmp_path / "data", target_is_directory=True)
    assert [record.answers[0] for record in open_source(tmp_path / "data")] == ["cat"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_a_quote_in_the_last_row(tmp_path, png, ending):
    (tmp_path / "a.png").write_bytes(png)
    rows = ["image\tcaption", 'a.png\tone "two', 'a.png\t"three']
    (tmp_path / "a.tsv").write_bytes(("\r\n" if ending == "\r\n" else "\n").join(rows).encode() + ending.encode())
    assert [record.answers[0] for record in open_source(tmp_path / "a.tsv")] == ['one "two', '"three']
