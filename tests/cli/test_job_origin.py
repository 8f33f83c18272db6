"""`mmchat caption` and `mmchat ocr` never mix the answers of two models, prompts or limits in one output."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from mmchat.errors import UserError
from mmchat.inference.jobs.journal import Journal, remove_journal
from mmchat.inference.jobs.origin import Origin, noted_origin, origin_file, origin_of, refuse_other_origin

MADE = Origin("runs/a", "1234", {"prompt": "What?", "max_new_tokens": 8})


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "captions.jsonl"
    with noted_origin(path, MADE):
        path.write_text('{"path": "a", "caption": "b"}\n')
    return path


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (Origin("runs/a", "1234", {**MADE.settings, "prompt": "Why?"}), "prompt 'What?' (now 'Why?')"),
        (Origin("runs/a", "1234", {**MADE.settings, "max_new_tokens": 9}), "max_new_tokens 8 (now 9)"),
        (Origin("runs/a", "1234", {**MADE.settings, "tile": True}), "tile None (now True)"),
        (Origin("runs/b", "5678", MADE.settings), "model runs/a (now runs/b)"),
        (Origin("runs/a", "5678", MADE.settings), "earlier weights of runs/a (now runs/a)"),
    ],
)
def test_an_output_of_something_else_is_refused(journal, origin, said):
    with pytest.raises(UserError) as refused:
        refuse_other_origin(journal, origin)
    expected = f"{journal} was made with {said}; name another --out, or start it again with --overwrite"
    assert str(refused.value) == expected


def test_the_same_origin_and_none_at_all_are_accepted(journal):
    refuse_other_origin(journal, MADE)
    refuse_other_origin(journal, Origin("moved/a", "1234", MADE.settings))
    origin_file(journal).unlink()
    refuse_other_origin(journal, Origin("runs/b", "5678", {}))


def test_a_job_without_a_line_leaves_no_file(tmp_path):
    with noted_origin(tmp_path / "none.jsonl", MADE):
        assert origin_file(tmp_path / "none.jsonl").exists()
    assert not list(tmp_path.iterdir())


def test_a_journal_that_is_being_written_is_not_removed(journal):
    with Journal(journal, ("path",), ("caption",)), pytest.raises(UserError, match="being written by another process"):
        remove_journal(journal)
    journal.write_text('{"path": "a", "caption": "b"}\n{"path": "c')  # as a killed process leaves it
    seen = []
    remove_journal(journal, seen.append)
    assert [line["path"] for line in seen] == ["a"] and not journal.exists()


def test_the_weights_decide_not_their_place(assistant_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    copy = shutil.copytree(assistant_dir, tmp_path / "copy")
    assert origin_of(copy, {}).weights == origin_of(assistant_dir, {}).weights
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, **{key: weights[key] + 1 for key in list(weights)[:1]}}, copy / "model.safetensors")
    assert origin_of(copy, {}).weights != origin_of(assistant_dir, {}).weights


@pytest.mark.parametrize("command", ["caption", "ocr"])
def test_the_commands_refuse_and_overwrite(run, assistant_dir, tmp_path, make_image, monkeypatch, command):
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    make_image().save(tmp_path / "a.png")
    out, texts = tmp_path / "out.jsonl", tmp_path / "texts"
    sidecars = ["--sidecar-dir", texts] if command == "caption" else []
    begin = [command, assistant_dir, tmp_path / "a.png", "--out", out, "--max-new-tokens", 3, *sidecars]
    assert run(*begin)[0] == 0
    before = out.read_text()
    status, _, err = run(*begin, "--prompt", "Another?")
    assert (status, out.read_text()) == (2, before) and err.count("\n") == 1
    assert f"{out} was made with prompt " in err and "(now 'Another?')" in err and "--overwrite" in err
    status, said, _ = run(*begin, "--prompt", "Another?", "--overwrite")
    (line,) = map(json.loads, out.read_text().splitlines())
    assert status == 0 and "error" not in line and "0 were done before" in said
    assert json.loads(origin_file(out).read_text())["settings"]["prompt"] == "Another?"
    if command == "caption":
        assert (texts / "a.txt").read_text() == f"{line['caption']}\n"
