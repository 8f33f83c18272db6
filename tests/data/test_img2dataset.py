"""What img2dataset itself wrote (scripts/foreign/img2dataset.sh): read as it is, trained on, and evaluated."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from mmchat.data.config import DataConfig
from mmchat.data.mixture import open_mixture
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Record, Rejected
from mmchat.data.sources import open_source
from tests.clip_kinds import write_clip
from tests.launching import launch, metrics, write_config
from tests.training_fixtures import run_values

CAPTIONS = [f"a {c} {s}" for c in ("red", "green", "blue", "orange") for s in ("circle", "square", "triangle")]


@pytest.fixture(scope="module", params=["webdataset", "parquet"])
def downloaded(request, data_dir, tmp_path_factory) -> Path:
    return shutil.copytree(
        data_dir / "img2dataset" / request.param, tmp_path_factory.mktemp("img2dataset") / request.param
    )


def test_every_downloaded_image_with_its_caption(downloaded):
    records = [record for record in open_source(downloaded) if isinstance(record, Record)]
    assert sorted(record.answers[0] for record in records) == sorted(CAPTIONS)
    assert {record.images[0].open().size for record in records} == {(32, 32)}
    reds = [record.images[0].open().getpixel((16, 17)) for record in records if "red" in record.answers[0]]
    assert len(reds) == 3 and all(red > 200 and green < 60 and blue < 60 for red, green, blue in reds)
    assert {"url", "key", "status", "sha256"} <= records[0].extra.keys()


def test_what_was_not_downloaded_is_left_out_and_counted(downloaded, tmp_path, run):
    missing = [record for record in open_source(downloaded) if isinstance(record, Rejected)]
    assert len(missing) == (2 if downloaded.name == "parquet" else 0)  # a shard holds no failed downloads
    assert all("did not download it: HTTP Error 404" in record.reason for record in missing)
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", "stop")
    assert len(open_mixture(DataConfig(path=str(downloaded)), quarantine)) == 12
    assert len(quarantine) == len(missing)
    status, out, _ = run(downloaded, "--out", tmp_path / "check", "--workers", 0)
    counts = json.loads((tmp_path / "check" / "findings.json").read_text())
    assert status == 0 and counts["records/sound"] == 12
    assert counts["records/left_out"] == counts["left_out/not_downloaded"] == len(missing)
    assert ("Left out: 2 records" in out) == bool(missing)


@pytest.fixture
def loose(data_dir, tmp_path) -> Path:
    """The shard's members as files, which img2dataset's output format `files` is."""
    folder = tmp_path / "files"
    shutil.copytree(data_dir / "img2dataset" / "webdataset", folder)
    with tarfile.open(folder / "00000.tar") as shard:
        shard.extractall(folder / "00000", filter="data")
    (folder / "00000.tar").unlink()
    return folder


@pytest.mark.parametrize("tables", [True, False])
def test_loose_files_with_and_without_their_tables(loose, tables):
    for file in [] if tables else [p for p in loose.iterdir() if p.is_file()]:
        file.unlink()
    records = list(open_source(loose))
    assert sorted(record.answers[0] for record in records) == sorted(CAPTIONS)  # none is called "00000"
    assert {record.images[0].open().size for record in records} == {(32, 32)}
    assert "url" in records[0].extra and records[0].id == "0000000"


def test_loose_files_that_lack_something(loose):
    folder = loose / "00000"
    (folder / "0000000.json").unlink()  # the caption is in .txt
    (folder / "0000001.txt").unlink()  # the caption is in .json
    (folder / "0000002.txt").write_bytes(b"\xff")
    (folder / "0000003.json").write_text("{")
    (folder / "0000004.jpg").unlink()
    found = {record.id: record for record in open_source(loose)}
    assert found["0000000"].answers[0] in CAPTIONS and found["0000001"].answers[0] in CAPTIONS
    kinds = {name: record.kind for name, record in found.items() if isinstance(record, Rejected)}
    assert kinds == {"0000002": "not_utf8", "0000003": "invalid_json", "0000004": "not_fetched"}


def test_folders_of_classes_may_have_numbers(loose):
    for file in (loose / "00000").glob("*.[jt]*[nt]"):
        file.unlink()
    for file in loose.glob("0*.*"):
        file.unlink()
    assert {record.answers[0] for record in open_source(loose)} == {"00000"}


@pytest.mark.slow
def test_a_run_and_its_evaluation(downloaded, tmp_path, make_tower, data_dir):
    from mmchat.cli.main import main

    words = data_dir / "tokenizers" / "llama_like_legacy_false"
    model = write_clip(make_tower(), words, tmp_path / "model")
    values = run_values(tmp_path, model, downloaded, steps=20, batch_size=6)
    modules = ("towers", "text_encoder", "image_norm", "image_projection", "text_projection", "logit_scale")
    values |= {"objective": {"kind": "contrastive"}, "trainable": dict.fromkeys(modules, "full")}
    result = launch(write_config(tmp_path / "run.yaml", **values))
    assert result.returncode == 0, result.stdout
    losses = [row["loss"] for row in metrics(tmp_path / "run")]
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
    main(["clip", "eval", str(tmp_path / "run" / "model"), str(downloaded), "--retrieval", "--out", str(tmp_path)])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["text_to_image/recall@10"] >= 10 / 12 - 0.2
