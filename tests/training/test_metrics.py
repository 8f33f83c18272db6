"""What a run says of its own speed, memory and device."""

import json
import sys
from importlib.metadata import version

import pytest
import torch

from mmchat.errors import UserError
from mmchat.evaluation.summary import summarise, summary_table
from mmchat.training.monitoring import metrics, peak_flops
from mmchat.training.monitoring.gpus import GPUS
from mmchat.training.monitoring.metrics import Meter, peak_memory, write_environment
from mmchat.training.monitoring.peak_flops import Peak, find_peak_flops, matmul_rate


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances on request."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def step(meter, clock, wait, work, **counts):
    clock.now += wait
    meter.data_ready()
    clock.now += work
    return meter.step_done(**{"terms": 0, "tokens": 0, "images": 0, "operations": None, **counts})


def test_rates_are_over_the_last_steps_and_without_what_lies_between(clock):
    meter = Meter(peak=1000.0, window=2)
    first = step(meter, clock, 1, 3, terms=8, tokens=40, images=2, operations=2000)
    assert first == {
        "seconds": 4.0,
        "supervised_tokens_per_second": 2.0,
        "tokens_per_second": 10.0,
        "images_per_second": 0.5,
        "mfu": 0.5,
        "data_wait": 0.25,
    }
    clock.now += 1000  # a validation
    meter.resume()
    second = step(meter, clock, 0, 1, terms=2, tokens=10, images=3, operations=1000)
    assert (second["seconds"], second["tokens_per_second"], second["images_per_second"]) == (1.0, 10.0, 1.0)
    assert (second["mfu"], second["data_wait"]) == (0.6, 0.2)
    third = step(meter, clock, 0.5, 0.5, terms=2, tokens=30, images=0, operations=0)
    assert (third["tokens_per_second"], third["mfu"], third["data_wait"]) == (20.0, 0.5, 0.25)


def test_unknown_operations_give_no_utilisation(clock):
    assert step(Meter(peak=1000.0), clock, 0, 1, tokens=5)["mfu"] is None


def test_memory_is_this_process_at_its_largest():
    before = peak_memory()
    block = torch.ones(before // 2, dtype=torch.uint8)
    after = peak_memory()
    del block
    assert after > before and peak_memory() == after
    assert before > 50 * 2**20  # bytes, not the kernel's kilobytes


def test_peak_stated_known_or_measured(monkeypatch):
    assert find_peak_flops("bf16", 3.5) == Peak(3.5e12, "peak_tflops: 3.5 x 1 rank")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    known = find_peak_flops("bf16", None)
    assert known.flops == GPUS["NVIDIA H100 80GB HBM3"].flops and "H100" in known.source
    # fp32, or a part of a device, is not what the data sheet says.
    monkeypatch.setattr(peak_flops, "matmul_rate", lambda device, dtype: 7e12)
    assert find_peak_flops("fp32", None).flops == 7e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    found = find_peak_flops("bf16", None)
    assert found.flops == 7e12 and "measured" in found.source


def test_a_cpu_without_bf16_instructions_has_the_peak_of_fp32(monkeypatch):
    rates = {torch.bfloat16: 1e9, torch.float32: 9e9}
    monkeypatch.setattr(peak_flops, "matmul_rate", lambda device, dtype: rates[dtype])
    slow, fast = find_peak_flops("bf16", None), find_peak_flops("fp32", None)
    assert slow.flops == fast.flops == 9e9
    assert slow.hint == "this CPU multiplies 9 times as fast in fp32: set precision: fp32" and fast.hint is None
    rates[torch.bfloat16] = 2e10
    assert find_peak_flops("bf16", None).hint is find_peak_flops("fp32", None).hint is None
    assert find_peak_flops("bf16", None).flops == 2e10 and find_peak_flops("fp32", None).flops == 9e9


def test_the_measured_rate_is_of_the_right_size(monkeypatch):
    """Against a product timed here: within a factor of 20, on a machine that others use, too."""
    import time

    monkeypatch.setattr(peak_flops, "MEASURED_SECONDS", 0.05)
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    a, best = torch.ones(512, 512), float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - begin)
    assert 1 / 20 < rate / (2 * 512**3 / best) < 20


def test_environment_tells_the_peak(tmp_path):
    write_environment(tmp_path / "environment.json", Peak(2.5e11, "measured somehow"))
    written = json.loads((tmp_path / "environment.json").read_text())
    assert (written["peak_tflops_all_ranks"], written["peak_source"], written["ranks"]) == (0.25, "measured somehow", 1)
    assert written["packages"]["torch"] == version("torch") and written["python"] == sys.version.split()[0]


def write_rows(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(step, seconds, **values):
    counts = {"terms": 10, "tokens": 100, "images": 4, "memory": 2**30, "fill": 0.5, "mfu": 0.2, "data_wait": 0.1}
    return {"step": step, "loss": 2.0 / step, "seconds": seconds, **counts, **values}


def test_the_summary_of_a_run(tmp_path):
    skipped = {key: value for key, value in row(2, 3.0, mfu=0.6, memory=3 * 2**29).items() if key != "loss"}
    write_rows(
        tmp_path,
        [
            row(1, 1.0),
            {**skipped, "skipped": "nan"},
            {"step": 2, "validation_loss": 0.25, "validation_top1": 0.5},
            {"step": 2, "zero_shot_top1": 0.75},
        ],
    )
    (tmp_path / "quarantine.jsonl").write_text('{"where": "a", "reason": "b"}\n')
    assert summarise(tmp_path) == {
        "steps": "1 and 1 skipped",
        "time": "4.0 s",
        "last loss": "2.0000",
        "validation loss": "0.2500",
        "validation top-1": "50.0%",
        "zero-shot top-1": "75.0%",
        "supervised tokens/s": "5",
        "tokens/s": "50",
        "images/s": "2.0",
        "MFU": "50.0%",
        "batch fill": "50.0%",
        "data wait": "10.0%",
        "peak memory": "1.50 GiB",
        "tokens cut": "0",
        "samples left out": "1",
    }


@pytest.mark.parametrize(("seconds", "shown"), [(59.94, "59.9 s"), (90, "1.5 min"), (7150, "1 h 59 min")])
def test_durations(tmp_path, seconds, shown):
    write_rows(tmp_path, [row(1, seconds)])
    assert summarise(tmp_path)["time"] == shown


def test_what_is_not_known_has_no_row(tmp_path):
    write_rows(tmp_path, [row(1, 1.0, mfu=None, images=0)])
    figures = summarise(tmp_path)
    assert (figures["MFU"], figures["validation loss"], figures["images/s"]) == (None, None, None)
    assert figures["data wait"] == "10.0%"
    shown = [cell for column in summary_table(figures).columns for cell in column.cells]
    assert "data wait" in shown and not {"MFU", "validation loss", "images/s", "-", None} & set(shown)
    write_rows(tmp_path, [])
    assert set(summarise(tmp_path).values()) == {"0", "0.0 s", None}
    with pytest.raises(UserError, match=r"other/metrics.jsonl does not exist"):
        summarise(tmp_path / "other")


def test_the_table_reads_downwards():
    table = summary_table({"a": "1", "b": "2", "x": None, "c": "3"})
    assert [list(column.cells) for column in table.columns] == [["a", "b"], ["1", "2"], ["c", ""], ["3", ""]]
