"""`mmchat data check`, stopped by a kill, a full disk or a bug, and resumed."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmchat.data.config import DataConfig, SourceConfig
from mmchat.data.doctor import run as doctor
from mmchat.data.doctor.report import write_reports
from mmchat.data.doctor.run import CheckRequest, check
from tests.data.doctoring import OUTPUTS, ask, record
from tests.data.storing import write_jsonl

KILLED = """
import os, signal, sys
from pathlib import Path
from mmchat.data.config import DataConfig
from mmchat.data.doctor import partial_results, run
run.CHUNK = 2
if {when} == "between":
    save, count = partial_results.PartialResults.save, 0
    def dying(self, *words):
        global count
        save(self, *words)
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    partial_results.PartialResults.save = dying
else:
    fsync, count = os.fsync, 0
    def dying(file):
        global count
        count += 1
        if count == {when}:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)
    os.fsync = dying
run.check(run.CheckRequest(DataConfig(path={path!r}), Path({out!r}), workers=0))
"""


@pytest.mark.parametrize("when", ["'between'", "4", "8"])
def test_a_killed_check_resumes_with_the_same_result(records, tmp_path, when, monkeypatch):
    """Killed between two parts, while one is written, and while the outcome is written."""
    monkeypatch.setattr(doctor, "CHUNK", 2)
    whole, out = tmp_path / "whole", tmp_path / "out"
    uninterrupted = check(ask(records, whole))
    code = KILLED.format(when=when, path=str(records), out=str(out))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    answer = check(ask(records, out))
    assert answer.known == {"'between'": 6, "4": 4, "8": 10}[when] and uninterrupted.known == 0
    for name in OUTPUTS:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    write_reports(answer)
    assert f"{answer.known} checked earlier" in (out / "report.md").read_text()
    answer.partial.delete()
    assert {path.name for path in out.iterdir()} == {*OUTPUTS, "report.html", "report.md"}
    assert check(ask(records, out)).known == 0


KILLED_WITH_WORKERS = """
import multiprocessing, os, signal
from pathlib import Path
from mmchat.data.config import DataConfig
from mmchat.data.doctor import run
run.CHUNK = 2
real = run.map_chunks
def dying(*words):
    for number, item in enumerate(real(*words)):
        if number == 1:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        yield item
run.map_chunks = dying
run.check(run.CheckRequest(DataConfig(path={path!r}), Path({out!r}), workers=2))
"""


def test_a_killed_check_leaves_no_process(records, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CHUNK", 2)
    out = tmp_path / "out"
    code = KILLED_WITH_WORKERS.format(path=str(records), out=str(out))
    with (tmp_path / "printed").open("w") as printed:  # no pipe: workers left behind would keep it open
        status = subprocess.run([sys.executable, "-c", code], stdout=printed, check=False).returncode
    assert status == -signal.SIGKILL
    workers = [Path(f"/proc/{pid}") for pid in (tmp_path / "printed").read_text().split()]
    ends = time.monotonic() + 20
    while any(worker.exists() for worker in workers) and time.monotonic() < ends:
        time.sleep(0.02)
    assert len(workers) == 2 and not any(worker.exists() for worker in workers)
    assert check(ask(records, out)).known >= 4


def test_other_settings_start_over(records, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CHUNK", 2)
    out = tmp_path / "out"
    check(ask(records, out))
    assert check(ask(records, out)).known == 10
    against = (SourceConfig(path=str(write_jsonl(tmp_path / "eval.jsonl", [record("v", "b.png")]))),)
    assert check(ask(records, out, against=against)).known == 0
    assert check(CheckRequest(DataConfig(path=str(records), max_turns=1), out, workers=0)).known == 0
    write_jsonl(records, [record("a", "a.png")])
    (out / "parts" / "mine.txt").write_text("kept")
    answer = check(ask(records, out))
    assert answer.known == 0
    answer.partial.delete()
    assert [path.name for path in (out / "parts").iterdir()] == ["mine.txt"]


def test_a_full_disk_is_an_error_and_the_check_resumes(run, records, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CHUNK", 2)
    out, fsync, left = tmp_path / "out", os.fsync, [4]

    def full(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        status, printed, err = run(records, "--out", out, "--workers", "0")
    assert (status, printed) == (2, "")
    assert "cannot be written: No space left on device" in err and "start again to resume" in err
    assert not list(out.glob("*.jsonl")) and not list(out.rglob("*.tmp"))
    assert check(ask(records, out)).known > 0


def test_a_defect_names_the_record(records, tmp_path, monkeypatch):
    def broken(image, max_pixels):
        raise ZeroDivisionError

    monkeypatch.setattr("mmchat.data.doctor.record_checks.check_image", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        check(ask(records, tmp_path / "out"))
    assert caught.value.__notes__ == [f"while checking record 0 of {records}"]
