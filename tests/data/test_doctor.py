"""`mmchat data check`: files, output, exit status. Kinds of finding: test_doctor_planted.py."""

import json
import subprocess
import sys

import pytest

from mmchat.data.config import DataConfig, SourceConfig
from mmchat.data.doctor.report import write_reports
from mmchat.data.doctor.run import CheckRequest, check
from mmchat.data.mixture import open_mixture
from mmchat.data.quarantine import Quarantine
from mmchat.errors import UserError
from mmchat.files import read_json_lines
from mmchat.model.directory import load_processor
from tests.data.doctoring import OUTPUTS, ask, kinds, record, scene
from tests.data.planted_kinds import png_claiming
from tests.data.storing import write_jsonl, write_parquet, write_tar


def test_what_is_written(run, records, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = run(records, "--out", out)
    assert status == 1
    assert kinds(out) == {"c": "empty_answers", "e": "missing_image", "g": "exif_rotation", "i": "exact_duplicate"}
    line = next(line for line in read_json_lines(out / "quarantine.jsonl") if line["id"] == "i")
    assert line["where"] == f"{records}:9" and line["reason"].endswith(f"{records}:8")
    assert line["record"]["image"] == "i.png"
    counts = json.loads((out / "findings.json").read_text())
    assert (counts["records"], counts["records/sound"], counts["records/with_errors"]) == (10, 7, 3)
    assert (counts["error/exact_duplicate"], counts["warning/exif_rotation"], counts["error/leak"]) == (1, 1, 0)
    assert "3 of 10 records must not be trained on. Warnings: 1 more record." in printed
    assert f"next: mmchat train CONFIG --data.path {records} --data.index {out}/clean.npz" in printed
    assert {path.name for path in out.iterdir()} == {*OUTPUTS, "report.html", "report.md"}
    config = DataConfig(path=str(records), index=out / "clean.npz")
    mixture = open_mixture(config, Quarantine(tmp_path / "q.jsonl", "stop"))
    assert [mixture.find(number)[1].id for number in range(len(mixture))] == list("abdfghj")


def test_a_second_check_sees_fixed_images(run, records, tmp_path):
    out = tmp_path / "out"
    assert run(records, "--out", out)[0] == 1
    scene(4).save(tmp_path / "e.png")
    run(records, "--out", out)
    assert "missing_image" not in kinds(out).values()


def test_exit_statuses(run, records, tmp_path):
    good = write_jsonl(tmp_path / "good.jsonl", [record("a", "a.png"), record("b", "b.png"), record("text")])
    status, printed, _ = run(good, "--out", tmp_path / "good")
    assert status == 0 and "No errors in 3 records: training can start." in printed
    following = (
        f"next: mmchat train CONFIG --data.path {good}\n      CONFIG is yours, or a recipe: `mmchat recipe write "
    )
    assert following in printed
    assert "not checked: Lengths" in printed
    for words, message in [
        ((tmp_path / "none.jsonl",), "does not exist"),
        ((good, "--against", tmp_path / "none.json"), "does not exist"),
        ((good, "--model", tmp_path), "config.json"),
        ((good, "--template", "x"), "unknown conversation template 'x'"),
        ((tmp_path, "--out", tmp_path), "is the data itself; choose another folder"),
        ((good, "--out", good), "is the data itself; choose another folder"),
        ((good, "--out", records), "cannot be written: "),
    ]:
        status, printed, err = run(*words)
        assert (status, printed) == (2, ""), words
        assert message in err


def test_the_real_command(records, tmp_path):
    words = [sys.executable, "-m", "mmchat.cli.main", "data", "check", "records.jsonl", "--workers", "2"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "records must not be trained on" in done.stdout, done.stderr
    assert len(read_json_lines(tmp_path / "records.check" / "quarantine.jsonl")) == 3


def test_a_runs_mixture_is_checked_with_each_sources_template(run, assistant_dir, records, tmp_path):
    brief = [
        record("x", "a.png"),
        record("y"),
        {
            **record("z", "b.png"),
            "conversations": [*record("z", "b.png")["conversations"], *record("z2")["conversations"]],
        },
    ]
    write_jsonl(tmp_path / "brief.jsonl", brief)
    config = {
        "run_dir": str(tmp_path / "run"),
        "model": str(assistant_dir),
        "data": {
            "max_length": 400,
            "sources": {
                "chat": {"path": str(records)},
                "brief": {"path": str(tmp_path / "brief.jsonl"), "template": "plain"},
            },
        },
        "trainable": {"projector": "full"},
        "optimizer": {"lr": 1e-3},
        "steps": 1,
        "batch_size": 1,
    }
    path, out = tmp_path / "run.yaml", tmp_path / "out"
    path.write_text(json.dumps(config))
    status, printed, _ = run(path, "--out", out)
    assert status == 1
    found = kinds(out)
    # A template of one exchange with an image; and the same image in two sources is nobody's duplicate.
    assert (found["y"], found["z"]) == ("template_refusal", "template_refusal") and "x" not in found
    indexes = {"chat": out / "clean.1.chat.npz", "brief": out / "clean.2.brief.npz"}
    options = " ".join(f"--data.sources.{name}.index {index}" for name, index in indexes.items())
    assert f"next: mmchat train {path} {options}" in printed
    sources = {name: SourceConfig(**source, index=indexes[name]) for name, source in config["data"]["sources"].items()}
    mixture = open_mixture(DataConfig(sources=sources), Quarantine(tmp_path / "q.jsonl", "stop"))
    assert len(mixture) == 7 + 1
    # Only what the clean index keeps is looked at again.
    config["data"]["sources"]["brief"]["index"] = str(indexes["brief"])
    config["data"]["sources"]["chat"]["index"] = str(indexes["chat"])
    path.write_text(json.dumps(config))
    assert run(path, "--out", tmp_path / "again")[0] == 0


@pytest.mark.parametrize("write", [write_tar, write_parquet])
def test_images_inside_shards_and_columns(records, tmp_path, write):
    scene(4).save(tmp_path / "e.png")
    items = [json.loads(line) for line in records.read_text().splitlines()]
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "d.png").write_bytes(png_claiming(60_000, 60_000))
    suffix = {"write_tar": "tar", "write_parquet": "parquet"}[write.__name__]
    path = write(tmp_path / f"records.{suffix}", items, tmp_path)
    out = tmp_path / "out"
    answer = check(ask(path, out))
    write_reports(answer)
    by_reason = {line["reason"].split()[-1]: line["kind"] for line in read_json_lines(out / "quarantine.jsonl")}
    assert sorted(by_reason.values()) == [
        *("decompression_bomb", "empty_answers", "exact_duplicate", "truncated_image")
    ]
    assert answer.counts["warning/exif_rotation"] == 1
    assert "data:image/png;base64" in (out / "report.html").read_text()


def test_records_that_no_reader_expects(tmp_path):
    odd = {
        "text": ({"conversations": "[not JSON"}, "invalid_json"),
        "name": (record("name", "\ud800.png"), "missing_image"),
        "long": (record("long", "x" * 5000), "missing_image"),
        "null": (record("null", "a\0.png"), "missing_image"),
        "base64": (record("base64", "data:image/png;base64,@@"), "undecodable_image"),
        "http": (record("http", "http://nowhere.invalid/a.png"), "not_fetched"),
    }
    items = [{**item, "id": name} for name, (item, _) in odd.items()]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    check(ask(path, tmp_path / "out"))
    assert kinds(tmp_path / "out") == {name: kind for name, (_, kind) in odd.items()}


def test_what_the_model_decides(assistant_dir, tmp_path):
    """An order that its template takes is fine; without a model the strictest templates are asked."""

    def found(*speakers, template=None, model=True):
        turns = [{"from": speaker, "value": speaker} for speaker in speakers]
        path = write_jsonl(tmp_path / "r.jsonl", [{"id": "odd", "conversations": turns}])
        data = DataConfig(path=str(path), template=template)
        check(CheckRequest(data, tmp_path / "out", processor=processor if model else None, workers=0))
        return kinds(tmp_path / "out").get("odd")

    processor = load_processor(assistant_dir)
    twice = ("human", "human", "gpt")
    assert found(*twice, model=False) == found(*twice) == "role_order"
    assert found(*twice, template="vary_opt") is None
    # LLaVA drops an opening answer; a template that does not alternate keeps it.
    assert found("gpt", "human", "gpt", model=False) is found("gpt", "human", "gpt") is None
    assert found("gpt", "human", model=False) == found("gpt", "human") == "nothing_to_learn"
    assert found("gpt", "human", template="vary_opt") is None
    assert found("human", "gpt", "tool", "gpt", model=False) is None
    assert found("human", "gpt", "tool", "gpt") == "template_refusal"
    with pytest.raises(UserError, match="has no token"):  # no record's fault
        found("human", "gpt", template="chatml")


def test_a_leak_is_named_by_the_evaluation_set_that_holds_it(records, tmp_path):
    first = write_jsonl(tmp_path / "first.jsonl", [record("x"), record("y", "a.png"), record("gone", "none.png")])
    second = write_jsonl(
        tmp_path / "second.jsonl", [record("z"), record("u", "b.png"), record("t", None, "1 and 1?", "2")]
    )
    with records.open("a") as file:
        file.write(json.dumps(record("text", None, "1 and 1?", "2")) + "\n")
        file.write(json.dumps(record("other text", None, "1 and 1?", "3")) + "\n")
    against = tuple(SourceConfig(path=str(path)) for path in (first, second))
    answer = check(ask(records, tmp_path / "out", against=against))
    lines = [line for line in read_json_lines(tmp_path / "out" / "quarantine.jsonl") if line["kind"] == "leak"]
    assert [(line["id"], line["reason"]) for line in lines] == [
        ("a", f"image 1 is the same as in {first}:2"),
        ("b", f"image 1 is the same as in {second}:2"),
        ("text", f"has the same words as {second}:3"),
    ]
    assert answer.unread == 1
