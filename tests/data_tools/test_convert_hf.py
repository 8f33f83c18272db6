"""Hugging Face data sets as the `datasets` library itself writes them, and parquet files."""

import io
import json
import sys

import convert
import pytest
from convert_readers import hugging_face
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pillow

from mmchat.errors import UserError


def encoded(shade, form="PNG"):
    file = io.BytesIO()
    Pillow.new("RGB", (4, 3), (shade, 0, 0)).save(file, form)
    return file.getvalue()


def stored(shade, form="PNG"):
    return {"bytes": encoded(shade, form), "path": None}


CAULDRON = Features(
    {
        "images": List(Image()),
        "texts": List({"user": Value("string"), "assistant": Value("string"), "source": Value("string")}),
    }
)


def exchange(user, assistant):
    return {"user": user, "assistant": assistant, "source": "AI2D"}


@pytest.fixture
def cauldron():
    """Two exchanges on one image, two images, none, a literal placeholder, bytes that are no image."""
    rows = [
        {
            "images": [stored(1, "JPEG")],
            "texts": [exchange("What is a?\nAnswer briefly.", "É"), exchange("And b?", "2")],
        },
        {"images": [stored(2), stored(3)], "texts": [exchange("Which is darker?", "the first")]},
        {"images": [], "texts": [exchange("two and two?", "four")]},
        {"images": [stored(4)], "texts": [exchange("what is <image> and <image>?", "tags")]},
        {"images": [{"bytes": b"no image", "path": None}], "texts": [exchange("what?", "that")]},
        {"images": [stored(5)], "texts": [exchange("what?", "")]},
    ]
    return Dataset.from_list(rows, features=CAULDRON)


def run(source, tmp_path, *options, out="ai2d.jsonl"):
    out, root = tmp_path / out, tmp_path / "images"
    convert.main(["hf", "--input", str(source), "--out", str(out), "--image-root", str(root), *options])
    listing = out.with_name(f"{out.name}.skipped")
    left_out = [json.loads(line) for line in listing.read_text().splitlines()] if listing.exists() else []
    return [json.loads(line) for line in out.read_text().splitlines()], {e["id"]: e["reason"] for e in left_out}


@pytest.mark.parametrize("form", ["save_to_disk", "dataset dict", "parquet", "parquet folder"])
def test_the_cauldron(cauldron, tmp_path, form, monkeypatch):
    monkeypatch.setattr(hugging_face, "ROWS", 4)
    source = tmp_path / "source"
    if form == "save_to_disk":
        cauldron.save_to_disk(source, num_shards=2)
    elif form == "dataset dict":
        DatasetDict({"train": cauldron, "test": cauldron.select([2])}).save_to_disk(source)
    elif form == "parquet":
        source = source.with_suffix(".parquet")
        cauldron.to_parquet(source)
    else:
        source.mkdir()
        cauldron.select(range(3)).to_parquet(source / "train-00000-of-00002-c1676afa27c3bca9.parquet")
        cauldron.select(range(3, 6)).to_parquet(source / "train-00001-of-00002-c1676afa27c3bca9.parquet")
        cauldron.to_parquet(source / "test-00000-of-00001.parquet")
    records, left_out = run(source, tmp_path)
    assert records == [
        {
            "id": "ai2d_1",
            "image": "ai2d/0000/00000001_0.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is a?\nAnswer briefly."},
                {"from": "gpt", "value": "É"},
                {"from": "human", "value": "And b?"},
                {"from": "gpt", "value": "2"},
            ],
        },
        {
            "id": "ai2d_2",
            "image": ["ai2d/0000/00000002_0.png", "ai2d/0000/00000002_1.png"],
            "conversations": [
                {"from": "human", "value": "<image>\n<image>\nWhich is darker?"},
                {"from": "gpt", "value": "the first"},
            ],
        },
        {
            "id": "ai2d_3",
            "conversations": [{"from": "human", "value": "two and two?"}, {"from": "gpt", "value": "four"}],
        },
    ]
    assert left_out == {
        "ai2d_4": 'not as many "<image>" as images',
        "ai2d_5": "broken image",
        "ai2d_6": "empty answer",
    }
    assert (tmp_path / "images" / "ai2d/0000/00000001_0.jpg").read_bytes() == encoded(1, "JPEG")
    assert (tmp_path / "images" / "ai2d/0000/00000002_1.png").read_bytes() == encoded(3)


def test_captions_one_or_several(tmp_path):
    one = Features({"image": Image(), "caption": Value("string"), "id": Value("int64")})
    rows = [{"image": stored(1), "caption": "red ", "id": 70}, {"image": None, "caption": "none", "id": 71}]
    Dataset.from_list(rows, features=one).to_parquet(tmp_path / "one.parquet")
    records, left_out = run(tmp_path / "one.parquet", tmp_path, "--prompt", "Say it.")
    assert [(r["id"], r["conversations"][0]["value"], r["conversations"][1]["value"]) for r in records] == [
        ("70", "<image>\nSay it.", "red")
    ]
    assert left_out == {"71": "a caption needs one image"}

    several = Features({"image": Image(), "alt": List(Value("string"))})
    rows = [{"image": stored(1), "alt": ["red", "dark"]}]
    Dataset.from_list(rows, features=several).save_to_disk(tmp_path / "several")
    columns = ["--image-column", "image", "--caption-column", "alt"]
    records, _ = run(tmp_path / "several", tmp_path, *columns, out="b.jsonl")
    assert [(r["id"], r["image"], r["conversations"][1]["value"]) for r in records] == [
        ("b_1_0", "b/0000/00000001_0.png", "red"),
        ("b_1_1", "b/0000/00000001_0.png", "dark"),
    ]


def test_conversations_and_chat_messages(tmp_path):
    llava = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "Red."}]
    rows = [{"image": stored(1), "conversations": llava}]
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(tmp_path / "llava.parquet")
    records, _ = run(tmp_path / "llava.parquet", tmp_path, out="l.jsonl")
    assert records == [{"id": "l_1", "image": "l/0000/00000001_0.png", "conversations": llava}]

    chat = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ]
    unknown = [{"role": "tool", "content": [{"type": "text", "text": "?"}]}]
    rows = [{"images": [stored(1)], "messages": chat}, {"images": [stored(1)], "messages": unknown}]
    Dataset.from_list(rows).cast_column("images", List(Image())).to_parquet(tmp_path / "chat.parquet")
    records, left_out = run(tmp_path / "chat.parquet", tmp_path, out="c.jsonl")
    assert records[0]["conversations"] == [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "Red."},
    ]
    assert left_out == {"c_2": "the speaker of a turn is none of human, user, gpt, assistant, system"}


def test_another_image_in_the_place_is_not_overwritten(cauldron, tmp_path):
    cauldron.to_parquet(tmp_path / "source.parquet")
    place = tmp_path / "images/ai2d/0000/00000001_0.jpg"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    with pytest.raises(UserError, match="is another image"):
        run(tmp_path / "source.parquet", tmp_path)
    assert place.read_bytes() == b"mine"
    place.write_bytes(b"")
    run(tmp_path / "source.parquet", tmp_path)
    assert place.read_bytes() == encoded(1, "JPEG")


def test_mistakes(cauldron, tmp_path, monkeypatch):
    def refused(source, *options):
        with pytest.raises(UserError) as caught:
            convert.main(["hf", "--input", str(source), "--out", str(tmp_path / "o.jsonl"), *options])
        return str(caught.value)

    root = ("--image-root", str(tmp_path / "images"))
    cauldron.to_parquet(tmp_path / "source.parquet")
    assert "give their folder with --image-root" in refused(tmp_path / "source.parquet")
    assert "no column url among images, texts; give its name with --image-column" in refused(
        tmp_path / "source.parquet", *root, "--image-column", "url"
    )
    DatasetDict({"train": cauldron}).save_to_disk(tmp_path / "dict")
    assert "has no split 'dev' but train" in refused(tmp_path / "dict", *root, "--split", "dev")
    (tmp_path / "empty").mkdir()
    assert "neither the state.json of `save_to_disk`" in refused(tmp_path / "empty", *root)
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "source.parquet").read_bytes()[:500])
    assert "torn.parquet cannot be read" in refused(tmp_path / "torn.parquet", *root)
    assert "is neither a .parquet file nor a folder" in refused(tmp_path / "nowhere", *root)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    needed = "pyarrow is not installed; run pip install 'mmchat[data]'"
    assert refused(tmp_path / "source.parquet", *root) == needed
