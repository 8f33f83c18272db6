"""Any source becomes shards and comes back; a killed run, resumed, writes the same bytes."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import to_shards

from mmchat.data.records import Record
from mmchat.data.shards import INDEX_SUFFIX
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from tests.training_fixtures import write_records

PROGRAM = Path(to_shards.__file__)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    """Thirty records; one names an image that is gone, one a file that is no image, one has odd extras."""
    path = write_records(tmp_path / "data", 30)
    items = json.loads(path.read_text())
    items[4]["image"], items[7]["reason"] = ["gone.png"], ["not", "left out"]
    (tmp_path / "data" / "10-0.png").write_bytes(b"no image")
    path.write_text(json.dumps(items))
    return path


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def seen(source):
    return [(r.id, r.turns, r.extra, [image.read() for image in r.images]) for r in source if isinstance(r, Record)]


def test_to_shards_and_back(tmp_path, data, capsys):
    to_shards.main([str(data), str(tmp_path / "shards"), "--records-per-shard", "8"])
    printed = capsys.readouterr().out
    assert "28 records written" in printed and "2 left out" in printed and "gone.png does not exist" in printed
    names = sorted(p.name for p in (tmp_path / "shards").glob("*.tar*"))
    assert names == [f"{n:05}.tar{suffix}" for n in range(4) for suffix in ("", INDEX_SUFFIX)]

    usable = [entry for entry in seen(open_source(data)) if entry[3:] != ([b"no image"],)]
    assert seen(open_source(tmp_path / "shards")) == usable and len(usable) == 28
    to_shards.main([str(tmp_path / "shards"), str(tmp_path / "loose"), "--back"])
    assert seen(open_source(tmp_path / "loose" / "records.jsonl")) == usable
    # Loose to loose leaves the same out, and says which.
    to_shards.main([str(data), str(tmp_path / "again"), "--back"])
    assert seen(open_source(tmp_path / "again" / "records.jsonl")) == usable
    lines = [json.loads(line) for line in (tmp_path / "again" / "skipped" / "records.jsonl").read_text().splitlines()]
    assert [(line["id"], line["where"].rpartition(" ")[2]) for line in lines] == [("r4", "5"), ("r10", "11")]


def test_the_webdataset_layout(tmp_path, data):
    """Names that the webdataset package groups into samples; images byte for byte."""
    to_shards.main([str(data), str(tmp_path / "shards")])
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        names = tar.getnames()
        assert names[:2] == ["000000000.json", "000000001.json"] and "000000001.0.png" in names
        image = tar.extractfile("000000002.png").read()
    assert image == (data.parent / "2-0.png").read_bytes()


@pytest.mark.parametrize("back", [False, True])
def test_a_killed_run_goes_on(tmp_path, data, back):
    words = [str(data), "--records-per-shard", "4", *["--back"] * back]
    to_shards.main([*words, str(tmp_path / "whole")])
    killed = tmp_path / "killed"
    slow = f"import sys, time, runpy; sys.path.insert(0, {str(PROGRAM.parent)!r}); import to_shards as t\n" + (
        "real = t.extension_of\n"
        "def slowly(*a): time.sleep(0.02); return real(*a)\n"
        f"t.extension_of = slowly; t.main({[*words, str(killed)]!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], env={**os.environ})
    deadline = time.monotonic() + 60
    while len(list(killed.rglob("*.png")) + list(killed.glob("*.tar"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert contents(killed) != contents(tmp_path / "whole")
    if not back:  # what a kill inside a write leaves
        (killed / ".00001.tar.index.npz.1.tmp").touch()
        (killed / "skipped" / ".00002.jsonl.1.tmp").touch()
    else:  # a line that the kill cut
        with (killed / "records.jsonl.part").open("ab") as file:
            file.write(b'{"id": "cut')
    to_shards.main([*words, str(killed)])
    leftovers = {name for name in contents(killed) if name.startswith(".")}
    assert {k: v for k, v in contents(killed).items() if k not in leftovers} == contents(tmp_path / "whole")
    assert not leftovers


def test_shards_of_other_data_are_not_mixed(tmp_path, data):
    to_shards.main([str(data), str(tmp_path / "shards")])
    with pytest.raises(SystemExit):
        to_shards.main([str(data), str(tmp_path / "shards"), "--records-per-shard", "3"])
    shutil.copytree(tmp_path / "shards", tmp_path / "foreign", ignore=shutil.ignore_patterns(to_shards.PLAN))
    with pytest.raises(UserError, match="already has tar files"):
        to_shards.write_shards(open_source(data), tmp_path / "foreign", 5)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "records.jsonl").touch()
    with pytest.raises(UserError, match="already exists"):
        to_shards.unpack(open_source(data), tmp_path / "done")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nowhere.json", "out"], "does not exist"), (["a", "b", "--records-per-shard", "0"], "at least 1")],
)
def test_mistakes_are_one_line(tmp_path, words, message):
    result = subprocess.run([sys.executable, PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
