"""A journal keeps one line per item, whatever happened to the process before."""

import json
import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.errors import UserError
from mmchat.inference.jobs.digests import DigestSet
from mmchat.inference.jobs.items import Item, Outcome, failure
from mmchat.inference.jobs.journal import Journal
from tests.inference.jobs.fakes import lines


def item(name):
    return Item({"path": name}, open=lambda: None)


def open_journal(path, seen=lambda line: None):
    return Journal(path, ("path",), ("caption",), seen)


def write(path, *names, failed=()):
    with open_journal(path) as journal:
        for name in names:
            journal.append(item(name), failure("broken") if name in failed else Outcome({"caption": f"a {name}"}))


@given(st.lists(st.text(max_size=3)))
def test_a_digest_set_is_a_set(values):
    digests = DigestSet()
    assert [digests.add(value) for value in values] == [values.index(v) == n for n, v in enumerate(values)]
    assert len(digests) == len(set(values))
    assert all(value in digests for value in values)
    assert "absent" not in digests


def test_a_digest_set_grows():
    digests = DigestSet()
    assert all(digests.add([number]) for number in range(5000))
    assert not any(digests.add([number]) for number in range(5000))
    assert [5000] not in digests and len(digests) == 5000


def test_failed_lines_go_and_others_keep_their_place(tmp_path):
    out = tmp_path / "a.jsonl"
    write(out, "a", "b", "c", "d", failed=("a", "c"))
    seen = []
    with open_journal(out, seen.append) as journal:
        assert [["a"] in journal.answered, ["b"] in journal.answered, len(journal.answered)] == [False, True, 2]
    assert [line["path"] for line in seen] == [line["path"] for line in lines(out)] == ["b", "d"]
    assert not list(tmp_path.glob(".*"))


def test_every_cut_leaves_complete_lines(tmp_path):
    out = tmp_path / "a.jsonl"
    write(out, "a", "b", "c", failed=("b",))
    whole = out.read_bytes()
    for length in range(len(whole) + 1):
        out.write_bytes(whole[:length])
        write(out, *(name for name in "abc" if f'"caption": "a {name}"}}\n'.encode() not in whole[:length]))
        assert sorted(line["path"] for line in lines(out)) == ["a", "b", "c"], length
        assert all("caption" in line for line in lines(out))


def test_a_line_that_comes_twice_is_dropped(tmp_path):
    out = tmp_path / "a.jsonl"
    write(out, "a")
    out.write_bytes(2 * out.read_bytes())
    open_journal(out).__exit__(None, None, None)
    assert len(lines(out)) == 1


def test_an_empty_journal_leaves_no_file(tmp_path):
    write(tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def hold(path, pipe):
    with open_journal(path) as journal:
        journal.append(item("mine"), Outcome({"caption": "x"}))
        pipe.send(None)
        pipe.recv()


def test_two_processes_cannot_write_one_journal(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "a.jsonl", theirs), daemon=True)
    process.start()
    ours.recv()
    with pytest.raises(UserError, match=r"a\.jsonl is being written by another process"):
        open_journal(tmp_path / "a.jsonl")
    process.kill()  # the lock ends with its owner
    process.join()
    write(tmp_path / "a.jsonl", "other")
    assert [line["path"] for line in lines(tmp_path / "a.jsonl")] == ["mine", "other"]


def test_names_that_are_not_text(tmp_path):
    name = "\udcff\u2028.png"
    write(tmp_path / "a.jsonl", name)
    assert json.loads((tmp_path / "a.jsonl").read_text())["path"] == name
    with open_journal(tmp_path / "a.jsonl") as journal:
        assert [name] in journal.answered
