"""Every planted fault is found, at its place and by its kind, and nothing else is."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmchat.data.clean_index import load_clean_index
from mmchat.data.config import DataConfig, SourceConfig
from mmchat.data.doctor.findings import KINDS
from mmchat.data.doctor.run import CheckRequest, check
from mmchat.data.records import Record
from mmchat.data.sources import open_source
from mmchat.files import read_json_lines
from mmchat.model.directory import load_processor
from tests.data.planted_kinds import FAULTS, LOOKALIKES
from tests.data.planting import Planted, plant

MAX_LENGTH = 300
NEAR = {"near_duplicate", "near_leak"}


@pytest.fixture(scope="module")
def processor(assistant_dir):
    return load_processor(assistant_dir)


@pytest.fixture
def planted(tmp_path, processor) -> Planted:
    return plant(tmp_path / "planted", 3000, 240, measuring(processor), MAX_LENGTH)


def measuring(processor):
    return lambda messages: len(processor.render(messages).input_ids)


def found_in(out: Path) -> set[tuple[int, str]]:
    found = set()
    for name in ("quarantine.jsonl", "warnings.jsonl"):
        for line in read_json_lines(out / name):
            severity = "error" if name == "quarantine.jsonl" else "warning"
            assert KINDS[line["kind"]].severity == severity
            found.add((int(line["where"].rpartition(":")[2]), line["kind"]))
    return found


def test_exactly_what_was_planted_is_found(planted, processor, tmp_path):
    out = tmp_path / "out"
    data = DataConfig(path=str(planted.path), max_length=MAX_LENGTH)
    answer = check(CheckRequest(data, out, (SourceConfig(path=str(planted.held_out)),), processor, workers=0))
    found = found_in(out)
    firm = {(line, kind) for line, kind in found if kind not in NEAR}
    assert firm == planted.expected
    assert {kind for _, kind in planted.expected} == FAULTS.keys()
    errors = {line for line, kind in found if KINDS[kind].severity == "error"}
    assert not planted.lookalikes & errors
    # An image similar to an evaluation image, but not equal, is reported.
    assert any(kind == "near_leak" and line in planted.lookalikes for line, kind in found)

    keep = load_clean_index(out / "clean.npz", source := open_source(planted.path))
    lines = [int(source.table.row(int(number))[0].rpartition(":")[2]) for number in keep]
    assert len(lines) == 3000 - len(errors) and not errors & set(lines)
    assert all(isinstance(source[int(number)], Record) for number in keep[::50])
    counts = json.loads((out / "findings.json").read_text())
    assert counts["records/with_errors"] == len(errors) == answer.tally.erroneous
    assert counts["errors"] == sum(n for kind, n in counts.items() if kind.startswith("error/"))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_large_set_in_flat_memory(processor, assistant_dir, tmp_path, capfd):
    """200,000 records with 2,000 faults through the real command; memory as with a quarter of them."""
    peaks = {}
    for records in (50_000, 200_000):
        planted = plant(tmp_path / str(records), records, 2000, measuring(processor), MAX_LENGTH, seed=records)
        out = tmp_path / f"{records}.check"
        words = ["--model", str(assistant_dir), "--max-length", str(MAX_LENGTH), "--against", str(planted.held_out)]
        words = [sys.executable, "-m", "mmchat.cli.main", "data", "check", str(planted.path), "--out", str(out), *words]
        begun = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        watch = threading.Thread(target=lambda p=process, n=records: peaks.update({n: peak_of(p)}))
        watch.start()
        printed = process.communicate()[0]
        watch.join()
        seconds = time.perf_counter() - begun
        assert process.returncode == 1, printed
        assert {(line, kind) for line, kind in found_in(out) if kind not in NEAR} == planted.expected
        with capfd.disabled():
            pace = f"{records / seconds:,.0f} records/s, start and reports included"
            print(f"\n{records:,} records: {seconds:.0f} s, {pace}; peak {peaks[records] >> 20:,} MB of all processes")
    # Fixed-width columns: 80 bytes a record here, 24 for its place in the file here and in each worker.
    assert peaks[200_000] - peaks[50_000] < 150_000 * 400


def peak_of(process: subprocess.Popen) -> int:
    """The most memory that a process and all below it held together, in bytes, until it ends."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(resident, tree_of(process.pid))))
        time.sleep(0.2)
    return peak


def tree_of(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
        except OSError:
            continue
    return found


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def test_the_planters_cover_what_they_imitate():
    assert len(FAULTS) >= 12 and FAULTS.keys() <= KINDS.keys()
    assert {kind for kind, _ in LOOKALIKES} >= FAULTS.keys() - {
        *("empty_answer", "cut_text", "not_utf8", "replacement_character", "malformed_record")
    }
