"""Items from files, folders, patterns, tables and lists."""

import argparse
import base64
import io
import json
import pickle
import sys
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmchat.cli.job_options import fetcher
from mmchat.errors import UserError
from mmchat.images import find_images
from mmchat.inference.jobs import sources as module
from mmchat.inference.jobs.items import Item
from mmchat.inference.jobs.prompts import PromptTemplate, with_prompts
from mmchat.inference.jobs.sources import Options, Sources


@pytest.fixture
def png(make_image):
    def png(seed=0, width=30):
        make_image(seed, width).save(data := io.BytesIO(), "PNG")
        return data.getvalue()

    return png


@pytest.fixture
def photos(tmp_path, png):
    folder = tmp_path / "photos"
    for number, name in enumerate(["b.png", "a/z.JPG", "a/c.png", "a.png", "é/\udcff.png", "a/notes.md"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number, 10 + number))
    return folder


def found(*paths, **options):
    return list(Sources(paths, Options(**options)))


def names(items):
    return [item.key["path"] for item in items]


def widths(items):
    return [pickle.loads(pickle.dumps(item)).open().width for item in items]


def test_a_folder_gives_its_images_in_order(photos, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    sources = Sources([photos, photos / "b.png"], Options())
    items = list(sources)
    assert names(items) == [*map(str, find_images([photos])), str(photos / "b.png")]
    assert widths(items) == [12, 11, 13, 10, 14, 10]
    assert (sources.count(), sources.are_files) == (6, True)
    assert [item.stem for item in items][:2] == ["a/c", "a/z"]
    monkeypatch.chdir(photos)
    assert names(found(".")) == names(found("./")) == ["a/c.png", "a/z.JPG", "a.png", "b.png", "é/\udcff.png"]


def test_a_pattern(photos):
    sources = Sources([f"{photos}/**/*.png"], Options())
    assert sorted(names(sources)) == sorted(map(str, photos.rglob("*.png")))
    assert sources.count() == 4
    with pytest.raises(UserError, match=r"no file matches .*/\*\.webp"):
        found(f"{photos}/*.webp")


def test_what_holds_no_image_is_refused(tmp_path, photos):
    with pytest.raises(UserError, match="nowhere does not exist; expected an image file or a folder of images"):
        found("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image found in .*empty \(looked for .*\.bmp, .*\.png, "):
        found(tmp_path / "empty")


def test_a_shard(tmp_path, png):
    shard = tmp_path / "part-0.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in [
            ("x/1.jpg", png(1, 11)),
            ("x/1.json", json.dumps({"title": "a cat", "url": "http://x/y"}).encode()),
            ("2.png", png(2, 12)),
            ("3.0.png", png()),
            ("3.1.png", png()),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    first, second, third = found(shard)
    assert names([first, second]) == [f"{shard}:x/1", f"{shard}:2"]
    assert widths([first, second]) == [11, 12]
    assert first.fields["title"] == "a cat"
    assert (first.stem, first.file) == ("part-0/x/1", None)
    with pytest.raises(UserError, match=r"part-0.tar:3: has 2 images, expected one"):
        third.open()


def test_parquet_and_lines_with_records(tmp_path, png, monkeypatch, photos):
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    rows = [{"image": {"bytes": png(1, 11), "path": None}, "title": "one"}, {"image": None, "title": "two"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = found(tmp_path / "a.parquet")
    assert (names([first]), widths([first]), first.fields["title"]) == ([f"{tmp_path}/a.parquet:row 1"], [11], "one")
    with pytest.raises(UserError, match=r"a\.parquet:row 2: has no image; looked for image, images, .* found image, t"):
        second.open()
    (tmp_path / "b.jsonl").write_text('{"image": "photos/b.png", "id": 7}\n{"image": "../x.png"}\n{"image": \n')
    good, outside, broken = found(tmp_path / "b.jsonl")
    assert (names([good]), widths([good]), good.fields["id"]) == ([f"{tmp_path}/b.jsonl:1"], [10], 7)
    with pytest.raises(UserError, match=r"b\.jsonl:2: .*leaves the image root"):
        outside.open()
    with pytest.raises(UserError, match=r"b\.jsonl:3: invalid JSON"):
        broken.open()
    (good, *_) = found(tmp_path / "b.jsonl", image_root=str(tmp_path))
    assert widths([good]) == [10]


def test_a_list_and_standard_input(tmp_path, photos, png, monkeypatch):
    uri = "data:image/png;base64," + base64.b64encode(png(0, 44)).decode()
    text = f"{photos}/b.png\n\n{json.dumps({'image': uri, 'title': 'x'})}\r\n{photos}/é/".encode() + b"\xff.png"
    (tmp_path / "list.txt").write_bytes(text)
    sources = Sources([tmp_path / "list.txt"], Options())
    assert names(sources) == [f"{photos}/b.png", f"{tmp_path}/list.txt:3", f"{photos}/é/\udcff.png"]
    assert widths(sources) == [10, 44, 14]
    assert sources.count() == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    sources = Sources(["-"], Options())
    assert sources.count() is None
    assert names(sources) == [f"{photos}/b.png", "stdin:3", f"{photos}/é/\udcff.png"]


def test_any_line_of_a_list_is_an_item(tmp_path):
    (tmp_path / "list.txt").write_text("/\n.\n..\n" + "x" * 300 + ".png\n")
    items = found(tmp_path / "list.txt")
    assert len(items) == 4
    for item in items:
        with pytest.raises(UserError, match=r"image .* (is a folder|is broken)"):
            item.open()


def test_a_table_that_fsspec_opens(tmp_path, png):
    memory = fsspec.filesystem("memory")
    uri = "data:image/png;base64," + base64.b64encode(png(0, 44)).decode()
    memory.pipe("/jobs/a.jsonl", json.dumps({"image": uri}).encode())
    (item,) = found("memory://jobs/a.jsonl")
    assert (names([item]), item.open().width) == (["memory://jobs/a.jsonl:1"], 44)


def test_addresses_need_permission(tmp_path, png):
    (tmp_path / "list.txt").write_text("https://example.org/a/b.png?size=2\n")
    for path in (tmp_path / "list.txt", "https://example.org/a/b.png?size=2"):
        with pytest.raises(UserError, match=r"https://example\.org/a/b\.png\?size=2 is an address; --allow-http"):
            found(path)
        (item,) = found(path, fetch={"https://example.org/a/b.png?size=2": png(0, 17)}.__getitem__)
        assert (item.key["path"], item.stem) == ("https://example.org/a/b.png?size=2", "example.org/a/b.png")
        assert item.open().width == 17


def test_addresses_in_records(tmp_path, png):
    (tmp_path / "a.jsonl").write_text('{"url": "http://example.org/b.png"}\n')
    (item,) = found(tmp_path / "a.jsonl", fetch=lambda url: png(0, 18))
    assert item.open().width == 18
    (item,) = found(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"a\.jsonl:1: image http://example\.org/b\.png is a URL; set allow_http"):
        item.open()


def test_only_public_addresses_are_fetched():
    (item,) = found("http://127.0.0.1:9/a.png", fetch=fetcher(argparse.Namespace(allow_http=True)))
    with pytest.raises(UserError, match="does not lead to a public host"):
        item.open()


# Prompts


def test_a_prompt_with_fields():
    items = [Item({"path": "a.png"}, None, {"title": "a {cat}", "stars": 3}), Item({"path": "b.png"}, None, {})]
    template = PromptTemplate("{{{title}}} {stars} of {path}?")
    first, second = with_prompts(items, template, keep=("stars",))
    assert first.prompt == "{a {cat}} 3 of a.png?"
    assert (first.kept, first.fields) == ({"stars": 3}, {})
    with pytest.raises(UserError, match=r"^b\.png has no 'title', which the prompt names; it has path$"):
        second.open()
    with pytest.raises(UserError, match=r"^b\.png has no 'title'"):
        next(with_prompts(items[::-1], template))
    assert [item.prompt for item in with_prompts(items, PromptTemplate("What?"))] == ["What?", "What?"]


@pytest.mark.parametrize("text", ["{", "a } b", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", 'as JSON: {"a": 1}'])
def test_what_is_not_a_template_is_refused(text):
    with pytest.raises(UserError, match=r"write \{\{ and \}\} for braces"):
        PromptTemplate(text)
