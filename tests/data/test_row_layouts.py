"""Rows of other projects become the record that they mean; what is near to one and means something else is refused."""

import base64
import json
import tarfile
import unicodedata

import pytest
from PIL import Image

from mmchat.data.image_refs import ImageBytes, ImageFile, ImageUrl, is_bare_base64, make_image_ref
from mmchat.data.records import Record, Rejected, parse_record, read_record
from mmchat.data.shards import Member, index_shard, split_dotted
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from tests.data import storing
from tests.data.dialogue import dialogue

QUESTION = {"from": "human", "value": "<image>\nWhat?"}
ANSWER = {"from": "gpt", "value": "A cat."}
CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": "A cat."},
]
STORED = {"bytes": b"abc", "path": "x.png"}


@pytest.fixture(scope="module")
def root(tmp_path_factory, png):
    folder = tmp_path_factory.mktemp("rows")
    for name in ("a.png", "with space.png", "sub/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png)
    return folder


def read(row, root, **options) -> Record:
    return parse_record(row, "there:1", root, **options)


CAPTION = [("user", "<>"), ("assistant", "A cat.")]
ASKED = [("user", "<>\nWhat?"), ("assistant", "A cat.")]
ADDRESS = "https://example.org/a.jpg"
OUTCOME = {"key": "000000001", "status": "success", "error_message": None, "sha256": "0f", "width": 256}
ROWS = {
    # img2dataset, and the lists of addresses that it reads
    "img2dataset parquet": ({"image": STORED, "url": ADDRESS, "caption": "A cat."}, CAPTION),
    "img2dataset jpg column": ({"jpg": b"abc", "caption": "A cat.", "url": ADDRESS, **OUTCOME}, CAPTION),
    "img2dataset without caption": (
        {"jpg": b"abc", "caption": None, "txt": "A cat.", "url": ADDRESS, **OUTCOME},
        CAPTION,
    ),
    "stored beside file_name": ({"image": STORED, "file_name": "gone.jpg", "caption": "A cat."}, CAPTION),
    "path beside url": ({"image": "a.png", "url": ADDRESS, "caption": "A cat."}, CAPTION),
    "the same path twice": ({"image": "a.png", "file_name": "a.png", "caption": "A cat."}, CAPTION),
    "LAION": ({"URL": ADDRESS, "TEXT": "A cat.", "WIDTH": 640, "similarity": 0.3}, CAPTION),
    "Title Case": ({"Image": "a.png", "Caption": "A cat."}, CAPTION),
    # WebDataset as columns
    "columns": ({"__key__": "7", "__url__": "0.tar", "jpg": STORED, "txt": "A cat."}, CAPTION),
    "column webp": ({"__key__": "7", "webp": STORED, "json": {"caption": "A cat."}}, CAPTION),
    "column of turns": ({"__key__": "7", "png": STORED, "json": [QUESTION, ANSWER]}, ASKED),
    "columns in and out": ({"__key__": "7", "input.jpg": STORED, "output.txt": "A cat."}, CAPTION),
    "columns question": ({"png": STORED, "input.txt": "What?", "output.txt": "A cat."}, ASKED),
    "column cls": ({"__key__": "7", "jpg": STORED, "cls": 7}, [("user", "<>"), ("assistant", "7")]),
    # speakers and spellings
    "Human and GPT": (
        {"image": "a.png", "conversations": [{**QUESTION, "from": "Human"}, {**ANSWER, "from": "GPT"}]},
        ASKED,
    ),
    "USER and ASSISTANT": (
        {"image": "a.png", "conversations": [{**QUESTION, "from": "USER"}, {**ANSWER, "from": "Assistant"}]},
        ASKED,
    ),
    "from and content": (
        {"image": "a.png", "conversations": [{"from": "human", "content": "<image>\nWhat?"}, ANSWER]},
        ASKED,
    ),
    "role and value": (
        {
            "image": "a.png",
            "messages": [{"role": "user", "value": "<image>\nWhat?"}, {"role": "assistant", "value": "A cat."}],
        },
        ASKED,
    ),
    "from and parts": (
        {"image": "a.png", "conversations": [{"from": "human", "content": CHAT[0]["content"]}, ANSWER]},
        ASKED,
    ),
    "conversation": ({"image": "a.png", "conversation": [QUESTION, ANSWER]}, ASKED),
    "developer": (
        {"images": ["a.png"], "messages": [{"role": "developer", "content": "Be brief."}, *CHAT]},
        [("system", "Be brief."), *ASKED],
    ),
    "input_image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": "a.png", "detail": "high"},
                        {"type": "input_text", "text": "What?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "output_text", "text": "A cat."}]},
            ]
        },
        ASKED,
    ),
    "parts without type": (
        {"messages": [{"role": "user", "content": [{"image": "a.png"}, {"text": "What?"}]}, CHAT[1]]},
        ASKED,
    ),
    "Anthropic": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "YWJj"}},
                        {"type": "text", "text": "What?"},
                    ],
                },
                CHAT[1],
            ]
        },
        ASKED,
    ),
    "image_path": ({"image_path": "a.png", "conversations": [QUESTION, ANSWER]}, ASKED),
    "file_name": ({"file_name": "a.png", "conversations": [QUESTION, ANSWER]}, ASKED),
    # one question and its answer
    "ms-swift": ({"query": "<image>What?", "response": "A cat.", "images": ["a.png"]}, [("user", "<>What?"), ASKED[1]]),
    "ms-swift without mark": ({"query": "What?", "response": "A cat.", "images": ["a.png"]}, ASKED),
    "ms-swift history": (
        {"system": "S", "query": "And?", "response": "A dog.", "history": [["What?", "A cat."]], "images": ["a.png"]},
        [("system", "S"), *ASKED, ("user", "And?"), ("assistant", "A dog.")],
    ),
    "alpaca": (
        {"instruction": "Say.", "input": "This.", "output": "A cat."},
        [("user", "Say.\nThis."), ("assistant", "A cat.")],
    ),
    "alpaca without input": ({"instruction": "What?", "input": "", "output": "A cat.", "image": "a.png"}, ASKED),
    "Dolly": (
        {"instruction": "Say.", "context": "This.", "response": "A cat.", "category": "closed_qa"},
        [("user", "Say.\nThis."), ("assistant", "A cat.")],
    ),
    "TRL": ({"prompt": "What?", "completion": "A cat.", "image": "a.png"}, ASKED),
    "TRL messages": (
        {"images": ["a.png"], "prompt": [{"role": "user", "content": "What?"}], "completion": [CHAT[1]]},
        ASKED,
    ),
    "VLMEvalKit": ({"index": 1, "image": "a.png", "question": "What?", "answer": "A cat."}, ASKED),
    "VLMEvalKit options": (
        {"index": 1, "image": "a.png", "hint": "H.", "question": "What?", "A": "cat", "B": "dog", "answer": "A"},
        [("user", "<>\nH.\nWhat?\nA. cat\nB. dog"), ("assistant", "A")],
    ),
    "ChartQA": ({"image": STORED, "query": "What?", "label": ["A cat."]}, ASKED),
    # text alone
    **{
        f"text {value!r}": ({"image": value, "conversations": [{**QUESTION, "value": "What?"}, ANSWER]}, ASKED_ALONE)
        for ASKED_ALONE in ([("user", "What?"), ("assistant", "A cat.")],)
        for value in ("", [], [None], [""], [None, None], {"bytes": None, "path": None}, float("nan"))
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_the_record_that_it_means(root, name):
    row, expected = ROWS[name]
    assert dialogue(read(row, root, allow_http=True)) == expected


def test_which_column_is_the_image(root):
    def images(row):
        return read({**row, "caption": "c"}, root, allow_http=True).images

    assert images({"image": STORED, "url": ADDRESS, "file_name": "n"}) == (ImageBytes(b"abc", "x.png"),)
    assert images({"file_name": "a.png", "url": ADDRESS}) == (ImageFile(str(root), "a.png"),)
    assert images({"image": "", "url": ADDRESS}) == (ImageUrl(ADDRESS),)
    kept = read({"image": STORED, "url": ADDRESS, "caption": "c", "width": 3}, root).extra
    assert kept == {"url": ADDRESS, "width": 3}


def test_answers_of_a_prompt_are_not_trained_on(root):
    prompt = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "B?"},
    ]
    record = read({"prompt": prompt, "completion": [{"role": "assistant", "content": "b"}]}, root)
    assert [(turn.text, turn.train) for turn in record.turns if turn.role == "assistant"] == [("a", False), ("b", True)]


REFUSED = {
    "not downloaded": ({"url": ADDRESS, "key": "1", "status": "failed_to_download", "error_message": "404"}, "404"),
    "two images": ({"image": "a.png", "file_name": "sub/b.png", "caption": "c"}, 'has both "image" and "file_name"'),
    "two stored": ({"image": STORED, "image_base64": b"x", "caption": "c"}, 'has both "image" and "image_base64"'),
    "empty between": (
        {"images": ["a.png", None], "conversations": [QUESTION, ANSWER]},
        "has 2 entries, 1 of them empty",
    ),
    "two layouts": ({"question": "q", "answer": "a", "query": "q", "response": "r"}, "fits two layouts: ms-swift and"),
    "caption and question": ({"image": "a.png", "caption": "c", "question": "q", "answer": "a"}, 'has both "caption"'),
    "several answers": ({"image": "a.png", "question": "q", "answers": ["a", "b"]}, "data_tools/convert.py vqav2"),
    "choices": ({"image": "a.png", "question": "q", "choices": ["a", "b"], "answer": 1}, '"choices" beside a question'),
    "a gap in the options": ({"question": "q", "A": "a", "C": "c", "answer": "A"}, "has the options A, C"),
    "answer object": ({"question": "q", "answer": {"a": 1}}, '"answer" must be a text'),
    "history": ({"query": "q", "response": "r", "history": [["a"]]}, '"history" must be a list of'),
    "COCO": ({"image_id": 9, "id": 1, "caption": "c"}, "data_tools/convert.py coco_captions"),
    "Gemini": ({"contents": [{"parts": []}]}, "is Gemini's layout"),
    "completion text": ({"prompt": [CHAT[0]], "completion": "a"}, '"completion" is not'),
    "two speakers": (
        {"conversations": [{"from": "human", "role": "assistant", "value": "a"}]},
        "turn 1 is from 'human'",
    ),
    "two texts": ({"conversations": [{"from": "human", "value": "a", "content": "b"}]}, "turn 1 must be"),
    "file_id": ({"messages": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "by file_id"),
    "untyped audio": ({"messages": [{"role": "user", "content": [{"audio": "a.wav"}]}]}, 'a part of "audio"'),
    "video member": ({"__key__": "1", "mp4": b"x", "txt": "c"}, "holds .mp4, which is video or audio"),
    "image as answer": (
        {"__key__": "1", "input.jpg": STORED, "output.jpg": STORED, "txt": "c"},
        "an image as the answer",
    ),
    "json text": ({"__key__": "1", "jpg": STORED, "json": "c"}, "neither an object nor a list of turns"),
    "names": ({"__key__": "1", "jpg": STORED, "json": {"image": 5, "caption": "c"}}, "must name images by their paths"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_near_is_refused_by_name(root, name):
    row, reason = REFUSED[name]
    found = read_record(row, "there:1", root)
    assert isinstance(found, Rejected) and reason in found.reason


def test_base64_as_it_is_written(root, png):
    plain = base64.b64encode(png).decode()
    lines = [plain[at : at + 76] for at in range(0, len(plain), 76)]
    for body in (
        plain,
        "\n".join(lines),
        "\r\n".join(plain[at : at + 64] for at in range(0, len(plain), 64)) + "\r\n",
        plain.rstrip("="),
        " " + plain,
        plain.replace("+", "-").replace("/", "_"),
        plain.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    ):
        for prefix in ("data:image/png;base64,", "data:;base64,", "data:image/png;charset=utf-8;BASE64,", ""):
            assert make_image_ref(prefix + body, str(root), False).read() == png
    for broken in (plain[:-5] + "*" + plain[-4:], plain.rstrip("=")[: len(plain) // 4 * 4 - 3]):
        with pytest.raises(UserError, match="is not valid base64"):
            make_image_ref("data:image/png;base64," + broken, str(root), False).read()
    assert not is_bare_base64("a" * 100) and not is_bare_base64("folder/" * 20 + "iVBORw0KGgo.png")


def test_file_addresses_are_paths_below_the_root(root):
    for entry in (
        f"file://{root}/a.png",
        f"file:{root}/a.png",
        f"file://localhost{root}/a.png",
        "file://a.png",
        f"FILE://{root}/sub/../a.png",
    ):
        assert make_image_ref(entry, str(root), False).open().size == (40, 30)
    assert make_image_ref(f"file://{root}/with%20space.png", str(root), False).open().size == (40, 30)
    assert make_image_ref(f"file://{root}/with space.png", str(root), False).open().size == (40, 30)
    with pytest.raises(UserError, match="leaves the image root"):
        make_image_ref("file:///etc/passwd", str(root), False)
    with pytest.raises(UserError, match="leaves the image root"):
        make_image_ref("file://../a.png", str(root), False)
    with pytest.raises(UserError, match="does not exist"):
        make_image_ref(f"file://{root}/gone.png", str(root), False)


def test_names_that_are_spelled_otherwise_on_the_disk(tmp_path, png):
    decomposed = unicodedata.normalize("NFD", "é/ü.png")
    (tmp_path / decomposed).parent.mkdir()
    (tmp_path / decomposed).write_bytes(png)
    (tmp_path / "Sub").mkdir()
    (tmp_path / "Sub" / "IMG.PNG").write_bytes(png)
    for path in (unicodedata.normalize("NFC", "é/ü.png"), decomposed, unicodedata.normalize("NFC", "é\\ü.png")):
        assert make_image_ref(path, str(tmp_path), False).read() == png
    assert make_image_ref("Sub\\IMG.PNG", str(tmp_path), False).read() == png
    with pytest.raises(UserError, match=r"there is 'Sub/IMG.PNG', whose name differs only in upper and lower case"):
        make_image_ref("sub/img.png", str(tmp_path), False)
    (tmp_path / "Sub" / "img.PNG").write_bytes(png)
    with pytest.raises(UserError, match=r"img\.png does not exist$"):  # either could be meant
        make_image_ref("Sub/img.png", str(tmp_path), False)
    assert make_image_ref("Sub/IMG.PNG", str(tmp_path), False).read() == png


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            storing.add(tar, name, data if isinstance(data, bytes) else json.dumps(data).encode())
    return open_source(path)


SHARDS = {
    "img2dataset": (
        [("0.jpg", b"i"), ("0.txt", b"A cat."), ("0.json", {"caption": "A cat.", "url": ADDRESS, **OUTCOME})],
        [CAPTION],
    ),
    "caption in .txt only": (
        [("0.jpg", b"i"), ("0.txt", b"A cat."), ("0.json", {"caption": None, "url": ADDRESS, **OUTCOME})],
        [CAPTION],
    ),
    "cls": ([("0.jpg", b"i"), ("0.cls", b"7\n"), ("1.png", b"i"), ("1.cls", b"cat")], [
        [("user", "<>"), ("assistant", "7")],
        [("user", "<>"), ("assistant", "cat")],
    ]),
    "in and out": ([("x.input.jpg", b"i"), ("x.output.txt", b"A cat.")], [CAPTION]),
    "question": ([("x.jpg", b"i"), ("x.input.txt", b"What?"), ("x.output.txt", b"A cat.")], [ASKED]),
    "image and question in": (
        [("x.input.jpg", b"i"), ("x.input.txt", b"What?"), ("x.output.txt", b"A cat.")],
        [ASKED],
    ),
    "dots in keys": (
        [("d/v1.2.jpg", b"i"), ("d/v1.2.txt", b"A cat."), ("d/v1.3.jpg", b"i"), ("d/v1.3.txt", b"A cat.")],
        [CAPTION, CAPTION],
    ),
    "dots in one key": ([("photo.v1.2.jpg", b"i"), ("photo.v1.2.txt", b"A cat.")], [CAPTION]),
    "list of turns": ([("0.jpg", b"i"), ("0.json", [QUESTION, ANSWER])], [ASKED]),
    "list of messages": ([("0.jpg", b"i"), ("0.json", CHAT)], [ASKED]),
    "upper case": ([("0.JPG", b"i"), ("0.TXT", b"A cat.")], [CAPTION]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
def test_samples_of_a_shard(tmp_path, name):
    members, expected = SHARDS[name]
    records = list(shard(tmp_path / "a.tar", members))
    assert [dialogue(record) for record in records] == expected
    assert all(len(record.images) == 1 and record.images[0].read() == b"i" for record in records)


def test_members_with_dots_are_grouped_by_what_they_hold():
    def samples(*names):
        found = split_dotted("k", [Member(name, 0, 0) for name in names])
        return {key: [member.extension for member in members] for key, members in found}

    assert samples("json", "0.jpg", "1.jpg") == {"k": ["json", "0.jpg", "1.jpg"]}
    assert samples("jpg", "txt", "seg.png") == {"k": ["jpg", "txt", "seg.png"]}
    assert samples("jpg", "0.txt", "1.txt") == {"k": ["jpg", "0.txt", "1.txt"]}
    assert samples("jpg", "txt", "2.jpg", "2.txt") == {"k": ["jpg", "txt"], "k.2": ["jpg", "txt"]}
    assert samples("2.json", "2.0.jpg", "2.1.jpg") == {"k.2": ["json", "0.jpg", "1.jpg"]}
    assert samples("5.jpg", "5.txt", "6.jpg") == {"k.5": ["jpg", "txt"], "k.6": ["jpg"]}


def test_damaged_shards(tmp_path):
    def reason(*members):
        (found,) = shard(tmp_path / "a.tar", members)
        return found.reason

    assert "has two members .json" in reason(("0.json", {"a": 1}), ("0.json", {"a": 2}), ("0.jpg", b"i"))
    assert "has two members .jpg" in reason(("0.jpg", b"i"), ("0.JPG", b"j"), ("0.txt", b"c"))
    assert "must name images by their paths, found [5]" in reason(("0.jpg", b"i"), ("0.json", {"image": 5}))
    assert "404" in reason(("0.txt", b""), ("0.json", {"url": ADDRESS, "status": "failed_to_download", "key": "0",
                                                      "error_message": "404"}))  # fmt: skip


def test_a_shard_that_changed_under_its_index(tmp_path):
    path = tmp_path / "a.tar"
    source = shard(path, [("0.jpg", b"i" * 900), ("0.txt", b"A cat.")])
    index_shard(str(path), path.stat().st_size).save(tmp_path / "a.tar.index.npz")
    image = source[0].images[0]
    size = path.stat().st_size
    shard(tmp_path / "b.tar", [("0.jpg", b"i" * 300), ("0.txt", b"A cat."), ("1.txt", b"Another.")])
    path.write_bytes((tmp_path / "b.tar").read_bytes()[:size].ljust(size, b"\0"))
    (found, *_) = open_source(path)
    assert "was changed after it was indexed" in found.reason
    for use in (image.read, image.stream):
        with pytest.raises(UserError, match="was changed after it was indexed"):
            use()


def test_hostile_json_is_the_mistake_of_its_own_record(tmp_path):
    good = '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}'
    deep = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    long = '{"text": "a", "number": ' + "9" * 5_000 + "}"
    quoted = '{"text": "\\"]}[", "deep": ' + '{"a": ' * 50_000 + "1" + "}" * 50_000 + "}"
    for bad in (deep, long, quoted):
        for name, text in (
            ("a.jsonl", f"{bad}\n{good}\n"),
            ("b.json", f"{bad}\n{good}\n"),
            ("c.json", f"[{good}, {bad}, {good}]"),
            ("d.json", f"[{bad}]"),
        ):
            (tmp_path / name).write_text(text)
            found = list(open_source(tmp_path / name))
            kinds = [item.kind for item in found if isinstance(item, Rejected)]
            assert kinds == ["invalid_json"] and len(found) == {"c.json": 3, "d.json": 1}.get(name, 2)
    (tmp_path / "e.json").write_text("[" + "[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply, and does not end"):
        open_source(tmp_path / "e.json")


def test_a_file_of_annotations_names_the_converter(tmp_path):
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [{"caption": "a"}]}, indent=indent))
        with pytest.raises(UserError, match=r"found an object; annotations .* data_tools/convert\.py"):
            open_source(tmp_path / "a.json")


def test_a_link_that_points_at_itself(tmp_path):
    (tmp_path / "a.png").symlink_to("a.png")
    found = read_record({"image": "a.png", "caption": "c"}, "there:1", tmp_path)
    assert found.kind == "missing_image"


def test_addresses_that_cannot_be_fetched(root):
    for address in ("http://[/a.png", "http://exa mple.org/a b.png", "http://example.org\n/a.png"):
        image = read({"image": address, "caption": "c"}, root, allow_http=True).images[0]
        with pytest.raises(UserError):
            image.read()


def test_heic_needs_its_extra(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    from mmchat.images import formats, load_image

    formats.readable_formats()
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "a.heic", "HEIF")
    assert load_image(tmp_path / "a.heic").size == (40, 30)
    assert pillow_heif.__version__
    monkeypatch.setattr(formats, "installed", lambda module: False)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    with pytest.raises(UserError, match=r"a\.heic is HEIC, which needs pillow-heif; run pip install 'mmchat\[heif\]'"):
        load_image(tmp_path / "a.heic")
