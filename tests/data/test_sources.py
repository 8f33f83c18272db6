"""One data set in every storage gives the same records; broken data is named, and nothing is guessed."""

import http.server
import json
import pickle
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.conversation import parse_messages
from mmchat.data.records import Record, Rejected, write_records
from mmchat.data.shards import INDEX_SUFFIX, index_shard, open_index
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from tests.data import storing
from tests.training_fixtures import write_records as write_training_records


@pytest.fixture
def items(tmp_path):
    """Twelve records with 0, 1 or 2 images in tmp_path/data."""
    return json.loads(write_training_records(tmp_path / "data", 12).read_text())


def seen(source):
    """What matters of every record."""
    return [
        (record.id, [(t.role, "".join(p or "<>" for p in t.parts), t.train) for t in record.turns],
         [image.read() for image in record.images])
        for record in source
    ]  # fmt: skip


STORAGES = {
    "json": lambda folder, items, root: storing.write_json(folder / "a.json", items),
    "indented json": lambda folder, items, root: storing.write_json(folder / "a.json", items, indent=2),
    "jsonl": lambda folder, items, root: storing.write_jsonl(folder / "a.jsonl", items),
    "json that is jsonl": lambda folder, items, root: storing.write_jsonl(folder / "a.json", items),
    "folder": lambda folder, items, root: (
        [
            storing.write_jsonl(folder / "b.jsonl", items[5:]),
            storing.write_json(folder / "a.json", items[:5]),
        ][0].parent
    ),
    "pattern": lambda folder, items, root: (
        [
            storing.write_json(folder / "part-1.json", items[:1]),
            storing.write_json(folder / "part-2.json", items[1:]),
            (folder / "other.json").write_text("broken"),
        ][0].parent
        / "part-*.json"
    ),
    "tar": lambda folder, items, root: storing.write_tar(folder / "a.tar", items, root),
    "tars": lambda folder, items, root: (
        [
            storing.write_tar(folder / "1.tar", items[:7], root),
            storing.write_tar(folder / "2.tar", items[7:], root),
        ][0].parent
    ),
    "parquet": lambda folder, items, root: storing.write_parquet(folder / "a.parquet", items, root),
}


@pytest.mark.parametrize("name", STORAGES)
def test_the_same_records_in_every_storage(tmp_path, items, name):
    folder, root = tmp_path / "stored", tmp_path / "data"
    folder.mkdir()
    path = STORAGES[name](folder, items, root)
    source = open_source(path, image_root=root)
    reference = seen(open_source(root / "records.json"))
    assert len(source) == len(items) == len(reference)
    assert seen(source) == reference
    # Any order, and from another process.
    again = pickle.loads(pickle.dumps(source))
    assert [again[i].id for i in (7, 0, 11, 7)] == [items[i]["id"] for i in (7, 0, 11, 7)]
    assert len({record.where for record in source}) == len(items)


def test_a_datasets_folder(tmp_path, items):
    import datasets

    parquet = storing.write_parquet(tmp_path / "a.parquet", items, tmp_path / "data")
    stored = datasets.Dataset.from_parquet(str(parquet), cache_dir=str(tmp_path / "hf"))
    stored = stored.cast_column("images", datasets.List(datasets.Image()))
    stored.save_to_disk(tmp_path / "saved")
    assert seen(open_source(tmp_path / "saved")) == seen(open_source(tmp_path / "data" / "records.json"))
    datasets.DatasetDict({"train": stored, "test": stored}).save_to_disk(tmp_path / "splits")
    with pytest.raises(UserError, match=r"several splits; name one of .*splits/train"):
        open_source(tmp_path / "splits")
    assert len(open_source(tmp_path / "splits" / "test")) == 12


def test_fsspec_urls(tmp_path, items):
    """fsspec's memory file system stands for s3 and its like: the same calls."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in (tmp_path / "data").iterdir():
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    storing.write_tar(tmp_path / "a.tar", items, tmp_path / "data")
    memory.pipe("/shards/a.tar", (tmp_path / "a.tar").read_bytes())
    reference = seen(open_source(tmp_path / "data" / "records.json"))
    assert seen(open_source("memory://bucket/records.json")) == reference
    assert seen(open_source("memory://shards")) == reference
    assert seen(open_source("memory://shards/*.tar")) == reference
    assert seen(open_source(tmp_path / "data" / "records.json", image_root="memory://bucket")) == reference
    for path in ("../x.png", "/x.png", "memory://bucket/0.png", "a/../../x.png"):
        (tmp_path / "one.jsonl").write_text(json.dumps({"image": path, "caption": "a"}))
        (bad,) = open_source(tmp_path / "one.jsonl", image_root="memory://bucket/deep")
        assert "leaves the image root" in bad.reason
    with pytest.raises(UserError, match=r"memory://nowhere/a\.json does not exist"):
        open_source("memory://nowhere/a.json")
    with pytest.raises(UserError, match="cannot be opened"):
        open_source("nosuchthing://a/b.json")


class Site(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []
    files: dict[str, bytes] = {}

    def do_GET(self):
        Site.asked.append(self.path)
        self.send_response(200 if self.path in Site.files else 404)
        self.end_headers()
        self.wfile.write(Site.files.get(self.path, b""))

    def log_message(self, *arguments):
        pass


def test_nothing_is_fetched_unless_it_is_allowed(tmp_path, items):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    Site.files["/1-0.png"] = (tmp_path / "data" / "1-0.png").read_bytes()
    lines = [{"image": f"{base}/1-0.png", "caption": "a"}, {"image": f"{base}/none.png", "caption": "b"}]
    path = storing.write_jsonl(tmp_path / "a.jsonl", lines)
    assert ["allow_http" in record.reason for record in open_source(path)] == [True, True]
    with pytest.raises(UserError, match="fetched over http; set allow_http"):
        open_source(f"{base}/a.json")
    assert Site.asked == []
    found, missing = open_source(path, allow_http=True)
    assert found.images[0].open().size == (31, 24)
    with pytest.raises(UserError, match=r"none\.png could not be fetched: HTTP status 404"):
        missing.images[0].read()
    server.shutdown()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("block", [1, 2, 5, 40])
def test_an_error_after_a_complete_value_names_its_line(tmp_path, monkeypatch, block):
    """A lost brace: the string before the colon is a value of its own, and the file ends before anything fits."""
    from mmchat.data import text_files

    monkeypatch.setattr(text_files, "BLOCK", block)
    (tmp_path / "a.json").write_text('[\n  [],\n    "": null\n  }\n]\n')
    with pytest.raises(UserError, match=r"a\.json:3: invalid JSON: Expecting ',' delimiter"):
        text_files.JsonTable(str(tmp_path / "a.json"))


@settings(deadline=None, max_examples=150)
@given(values=st.lists(JSON, max_size=8), indent=st.sampled_from([None, 0, 2]), ascii_=st.booleans(), data=st.data())
def test_arrays_are_cut_where_json_cuts_them(tmp_path_factory, values, indent, ascii_, data):
    from mmchat.data import text_files

    folder = tmp_path_factory.mktemp("json")
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_)
    (folder / "a.json").write_text(data.draw(st.sampled_from(["", "\ufeff", " \n"])) + text + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", data.draw(st.integers(1, 40)))  # every place is once the end of a block
        table = text_files.JsonTable(str(folder / "a.json"))
        assert [table.row(i)[1] for i in range(len(table))] == values
        cut = data.draw(st.integers(0, len(text) - 1))
        if text[cut] in "[]{},:":
            (folder / "b.json").write_text("[" * (cut == 0) + text[:cut] + text[cut + 1 :], encoding="utf-8")
            broken = (folder / "b.json").read_text(encoding="utf-8")
            try:
                still = json.loads(broken)
            except ValueError as error:
                if not broken.startswith("["):
                    return
                with pytest.raises(UserError, match="invalid JSON") as caught:
                    text_files.JsonTable(str(folder / "b.json"))
                assert f":{error.lineno}: " in str(caught.value)
            else:
                if isinstance(still, list):
                    table = text_files.JsonTable(str(folder / "b.json"))
                    assert [table.row(i)[1] for i in range(len(table))] == still


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6) | st.sampled_from(
    ['"', ",", "\n", "\r\n", "\t", 'a "b" c', ""]
)


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(st.tuples(CELL, CELL), max_size=8), suffix=st.sampled_from(["csv", "tsv"]))
def test_rows_are_cut_where_csv_cuts_them(tmp_path_factory, rows, suffix):
    from mmchat.data.delimited_table import CsvTable

    path = tmp_path_factory.mktemp("csv") / f"a.{suffix}"
    storing.write_csv(path, [["filepath", "title"], *map(list, rows)])
    table = CsvTable(str(path))
    if suffix == "tsv" and any("\n" in cell and "\t" in cell for row in rows for cell in row):
        return  # may be several rows: test_delimited_rows.py
    found = [table.row(i)[1] for i in range(len(table))]
    assert [(row.get("filepath", ""), row.get("title", "")) for row in found] == rows


def test_captions_in_a_table(tmp_path, items):
    rows = [
        ["filepath", "title"],
        ["1-0.png", 'A "red",\ncat'],
        ["gone.png", "b"],
        ["2-0.png", "c", "d"],
        ["4-0.png", ""],
    ]
    path = storing.write_csv(tmp_path / "data" / "a.tsv", rows)
    good, gone, wide, empty = open_source(path)
    assert good.turns[1].parts == ('A "red",\ncat',) and good.where.endswith("a.tsv:row 1")
    assert "gone.png does not exist" in gone.reason
    assert "has 3 columns, but the header has 2" in wide.reason
    assert "is missing, found filepath" in empty.reason
    path.write_bytes(b"filepath\ttitle\n1-0.png\tgood\n1-0.png\tcaf\xe9\n2-0.png\tfine\n")
    assert [type(r) for r in open_source(path)] == [Record, Rejected, Record]
    (tmp_path / "one.csv").write_text("only\n1\n")
    with pytest.raises(UserError, match="must name two columns or more"):
        open_source(tmp_path / "one.csv")


def test_captions_in_shards(tmp_path, items):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("x/1.jpg", "x/2.txt", "x/1.txt"):
            data = (tmp_path / "data/1-0.png").read_bytes() if name.endswith("jpg") else f"text {name}\n".encode()
            storing.add(tar, name, data)
        storing.add(tar, "x/3.json", b'{"image": "a.png", "caption": "names one, has none"}')
        storing.add(tar, "x/4.json", b"[1]")
        storing.add(tar, "x/5.txt", b"\xff")
    first, second, third, fourth, fifth = open_source(tmp_path / "a.tar")
    assert (first.id, first.turns[1].parts, first.images[0].open().size) == ("x/1", ("text x/1.txt",), (31, 24))
    assert "a caption needs one image, found 0" in second.reason
    assert "names 1 images, the shard holds 0" in third.reason
    assert "is neither an object nor a list of turns" in fourth.reason and "is not UTF-8" in fifth.reason
    assert third.where == f"{tmp_path}/a.tar:x/3"


def test_the_index_of_a_shard(tmp_path, items, cache):
    shard = storing.write_tar(tmp_path / "a.tar", items, tmp_path / "data")
    reference = seen(open_source(shard))
    (cached,) = (cache / "shards").iterdir()
    cached.write_bytes(b"damaged")
    assert seen(open_source(shard)) == reference  # the index was built again
    beside = Path(f"{shard}{INDEX_SUFFIX}")
    index_shard(str(shard), shard.stat().st_size).save(beside)
    assert seen(open_source(shard)) == reference
    data = shard.read_bytes()
    shard.write_bytes(data + b"\0" * 512)
    with pytest.raises(UserError, match="belongs to a shard of"):
        open_source(shard)
    whole = beside.read_bytes()
    shard.write_bytes(data)
    for damaged in (b"PK damaged", b"", whole[: len(whole) // 2], pickle.dumps([1])):
        beside.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is damaged .*; delete it"):
            open_source(shard)
    beside.unlink()
    for cut in (
        512,
        700,
        1024,
        len(data) // 2,
        len(data) - 10_240,
    ):  # between two members, inside a header, inside a file
        shard.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"truncated|not a tar file, or is damaged"):
            open_source(shard)
    shard.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match="not a tar file"):
        open_source(shard)


def test_a_shard_with_a_thousand_samples_keeps_no_headers(tmp_path):
    items = [{"id": str(n), "conversations": [{"from": "gpt", "value": "a"}]} for n in range(4000)]
    shard = storing.write_tar(tmp_path / "a.tar", items, tmp_path)
    open_index(str(shard))
    tracemalloc.start()
    index = index_shard(str(shard), shard.stat().st_size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == 4000 and index.key(3999) == "3999"
    assert peak < 2_500_000  # a TarInfo alone takes more than 600 bytes


def test_an_array_that_is_no_json_names_the_line(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("\n".join(["[", *['{"id": "a"},'] * 5, '{"id": },', "]"]))
    with pytest.raises(UserError, match=r"data\.json:7: invalid JSON: Expecting value at column 8; .*\.jsonl"):
        open_source(path)
    path.write_text('[{"id": "a')
    with pytest.raises(UserError, match=r"data\.json:1: invalid JSON: Unterminated string starting at column 9; "):
        open_source(path)
    path.write_text('[{"id": 1},]')
    with pytest.raises(UserError, match=r"data\.json:1: invalid JSON: .* at column 1[12]; "):
        open_source(path)


def test_a_bad_line_of_jsonl_is_rejected_alone(tmp_path):
    path = tmp_path / "data.jsonl"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    lines = [json.dumps({"conversations": turns, "id": str(number)}).encode() for number in range(1, 10)]
    lines[6], lines[3], lines[8] = lines[6][:-5], b"", lines[8].replace(b'"a"', b'"\xe9"')
    path.write_bytes(b"\n".join(lines))
    found = list(open_source(path))
    bad = [item for item in found if isinstance(item, Rejected)]
    assert [item.where for item in bad] == [f"{path}:7", f"{path}:9"]
    assert bad[0].reason.startswith("invalid JSON: ") and "not UTF-8" in bad[1].reason
    assert [item.id for item in found if isinstance(item, Record)] == ["1", "2", "3", "5", "6", "8"]


def test_a_table_whose_first_line_or_index_is_damaged(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"image,cap\xfftion\na.png,a\n")
    with pytest.raises(UserError, match=r"data\.csv: the first line is not UTF-8 text: invalid start byte at byte 10"):
        open_source(path)
    path = tmp_path / "data.tsv"
    path.write_bytes(b"index\timage\tcaption\n1\t2\ta\n2\t\xff\tb\n" + b"9" * 5000 + b"\tx.png\tc\n")
    first, second, third = open_source(path)
    assert isinstance(first, Rejected) and "the image of the row with index 2, which is not UTF-8" in first.reason
    assert isinstance(second, Rejected) and "does not exist" in third.reason


def test_paths_that_are_no_data_set(tmp_path, items):
    for name, content, message in (
        ("object.json", b"{}", "must hold a JSON array of records or one record per line, found an object"),
        ("latin.json", '["é"]'.encode("latin-1"), r"latin\.json is not UTF-8 text"),
        ("words.json", b"hello", "must hold a JSON array"),
        ("a.docx", b"hello", r"holds no data file; expected one of \.json"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_source(tmp_path / name)
    with pytest.raises(UserError, match=r"data file .*nowhere\.json does not exist"):
        open_source(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match=r"no file matches .*nowhere-\*"):
        open_source(tmp_path / "nowhere-*.json")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    storing.write_json(mixed / "a.json", items)
    storing.write_csv(mixed / "b.csv", [["image", "caption"]])
    with pytest.raises(UserError, match=r"several kinds \(\.csv, \.json\); name one"):
        open_source(mixed)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_written_records_read_back(tmp_path, suffix):
    path = tmp_path / "deep" / f"data.{suffix}"
    turns = [{"from": "human", "value": "\n\u2028é"}, {"from": "gpt", "value": "\u4f60\n"}]
    write_records(path, [{"id": "a", "conversations": turns}, {"conversations": turns}])
    assert [record.turns for record in open_source(path)] == [tuple(parse_messages(turns))] * 2
    assert len(path.read_text().split("\n")) == (3 if suffix == "jsonl" else 5)


def test_the_digest_is_of_the_content(tmp_path, items, monkeypatch):
    from mmchat.data import storage

    first = open_source(storing.write_json(tmp_path / "a.json", items), tmp_path / "data").digest()
    assert open_source(storing.write_json(tmp_path / "b.json", items), tmp_path / "data").digest() == first
    # An unchanged file is not read again; a changed one is.
    with monkeypatch.context() as patch:
        patch.setattr(storage, "open_binary", lambda path: pytest.fail("read again"))
        assert storage.content_digest([str(tmp_path / "a.json")]) == first
    storing.write_json(tmp_path / "a.json", items[:-1])
    assert storage.content_digest([str(tmp_path / "a.json")]) != first
