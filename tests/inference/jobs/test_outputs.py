"""Parquet files and sidecars are made of the journal."""

import json
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmchat.errors import UserError
from mmchat.inference.captioning import CAPTIONING
from mmchat.inference.jobs import outputs
from mmchat.inference.jobs.items import Item, Outcome, failure
from mmchat.inference.jobs.job import run_job
from mmchat.inference.jobs.outputs import Sidecars, journal_of, write_parquet
from tests.inference.jobs.fakes import lines


def answer(items, broken=()):
    for item in items:
        try:
            item.open()
            yield item, failure("broken") if item.key["path"] in broken else Outcome({"caption": f"a {item.stem}"})
        except UserError as error:
            yield item, failure(error)


def items(folder, *names):
    return [Item({"path": f"{folder}/{n}"}, lambda: None, file=f"{folder}/{n}", stem=Path(n).stem) for n in names]


def caption(folder, *names, sidecars, broken=()):
    claimed = sidecars.claim(items(folder, *names))
    return run_job(CAPTIONING, claimed, folder / "out.jsonl", partial(answer, broken=broken), on_line=sidecars.write)


def test_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "ROWS", 2)
    rows = [{"path": f"{n}", "page": n, "text": "a\nb"} for n in range(4)] + [
        {"path": "\udcff", "page": 1, "error": "x"}
    ]
    (tmp_path / "a.parquet.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_parquet(tmp_path / "a.parquet.jsonl", tmp_path / "a.parquet", ("path", "page", "text"), ("page",))
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["path", "page", "text", "error"]
    assert table.to_pylist() == [
        *({**row, "error": None} for row in rows[:4]),
        {"path": "\\udcff", "page": 1, "text": None, "error": "x"},
    ]


def test_where_the_journal_is(tmp_path):
    assert journal_of(tmp_path / "a.jsonl", (".parquet",)) == tmp_path / "a.jsonl"
    assert journal_of(tmp_path / "a.parquet", (".parquet",)) == tmp_path / "a.parquet.jsonl"
    with pytest.raises(UserError, match=r"a\.csv must end in one of \.jsonl, \.parquet, which is its format"):
        journal_of(tmp_path / "a.csv", (".parquet",))
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UserError, match="was not written by this command, so it is not overwritten"):
        journal_of(tmp_path / "a.parquet", (".parquet",))


def test_sidecars_next_to_images(tmp_path):
    (tmp_path / "c.txt").write_text("mine")
    summary = caption(
        tmp_path, "a.png", "b.png", "c.png", "a.jpg", sidecars=Sidecars(None, "caption"), broken=[f"{tmp_path}/b.png"]
    )
    assert (summary.done, summary.failed) == (1, 3)
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {"a.txt": "a a\n", "c.txt": "mine"}
    errors = {Path(line["path"]).name: line["error"] for line in lines(tmp_path / "out.jsonl") if "error" in line}
    assert errors["a.jpg"] == f"{tmp_path}/a.txt exists and does not belong to this image; move it or use --sidecar-dir"
    assert "c.txt exists" in errors["c.png"] and errors["b.png"] == "broken"


def test_a_sidecar_that_a_killed_job_left_out_is_made_up_for(tmp_path):
    caption(tmp_path, "a.png", "b.png", sidecars=Sidecars(tmp_path / "texts", "caption"))
    (tmp_path / "texts" / "a.txt").unlink()
    summary = caption(tmp_path, "a.png", "b.png", sidecars=Sidecars(tmp_path / "texts", "caption"))
    assert summary.skipped == 2
    assert (tmp_path / "texts" / "a.txt").read_text() == "a a\n"


def test_nothing_is_written_outside_of_the_folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    stems = ["../out", "link/out", "/etc/out", "in/side"]
    found = [Item({"path": stem}, lambda: None, stem=stem) for stem in stems]
    sidecars = Sidecars(folder, "caption")
    run_job(CAPTIONING, sidecars.claim(found), tmp_path / "out.jsonl", answer, on_line=sidecars.write)
    assert sorted(tmp_path.rglob("*.txt")) == [folder / "etc" / "out.txt", folder / "in" / "side.txt"]
    assert sum("is outside of" in line.get("error", "") for line in lines(tmp_path / "out.jsonl")) == 2
    # A journal that names another place does not lead there.
    sidecars.write({"path": "x", "caption": "x", "sidecar": str(tmp_path / "x.txt")})
    Sidecars(None, "caption").write({"path": "x", "caption": "x", "sidecar": str(tmp_path / "x.txt")})
    assert not (tmp_path / "x.txt").exists()


def test_a_part_of_a_table_has_no_place_next_to_it(tmp_path):
    part = Item({"path": "a.tar:1"}, lambda: None, stem="a/1")
    with pytest.raises(UserError, match=r"^a\.tar:1 is not a file of its own, .*; use --sidecar-dir DIR$"):
        list(Sidecars(None, "caption").claim([part]))
