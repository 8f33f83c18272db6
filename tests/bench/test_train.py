"""bench/train.py: the compare_rounds computed from measurements, and the whole program on a tiny shape."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from side_by_side.comparison import WARMUP_STEPS, compare_rounds, medians, relative_differences, within_tolerance
from side_by_side.reference_run import ROW_TOKENS, collate, pack_rows
from side_by_side.workload import LONGEST, SHORTEST, text_lengths

from mmchat.constants import IGNORE_INDEX

LOGITS_TO_KEEP = ("--stage", "pretrain", "--a", "logits_to_keep")
PACKED = ("--a", "packed", "--batch", "16")
BENCH = Path(__file__).parents[2] / "bench" / "train.py"


def measured(seconds, memory, **changes):
    """Warm-up steps that take ten times as long, then two measured steps."""
    step = {"loss": 2.0, "grad_norm": 5.0, "grad_norms": {"projectors": 3.0, "language_model": 4.0}}
    step |= {"tokens": 100, "positions": 125, "operations": 30, "waited": 0.1, **changes}
    steps = [step | {"seconds": 10 * seconds, "cpu_seconds": 0.0, "kernel_seconds": 0.0}] * WARMUP_STEPS
    steps += [step | {"seconds": s, "cpu_seconds": 1.0, "kernel_seconds": 0.25} for s in (seconds, 3 * seconds)]
    return {"steps": steps, "memory": memory, "memory_of_workers": 0, "peak": 60.0, "ready": 9.0}


def test_ratios_exclude_warmup_steps():
    (one,) = compare_rounds([(measured(1.0, 8), measured(0.5, 4))])
    assert one["speed_ratio"] == 2 and one["memory_ratio"] == 0.5 and one["cpu_seconds_ratio"] == 1
    assert one["kernel_share_a"] == one["kernel_share_b"] == 0.25
    assert (one["tokens_per_second_a"], one["tokens_per_second_b"]) == (50, 100)
    assert (one["mfu_a"], one["mfu_b"]) == (0.25, 0.5)  # 60 operations in 4 s and in 2 s, of 60 a second
    assert one["fill_a"] == one["fill_b"] == 0.8 and one["loss_difference"] == 0
    assert one["data_wait_b"] == pytest.approx(0.1)  # 2 x 0.1 s of 2 s
    assert one["ready_b"] == 9


def test_packed_a_is_compared_per_its_own_tokens():
    """A, packed, trains twice the tokens in the time of a step: it is twice as fast and does twice the work."""
    (one,) = compare_rounds([(measured(1.0, 8, tokens=200, positions=205), measured(0.5, 4))])
    assert one["speed_ratio"] == 1 and one["cpu_seconds_ratio"] == 0.5
    assert (one["tokens_per_second_a"], one["mfu_a"]) == (100, 0.5)


def test_packed_rows_hold_all_samples_and_are_padded_to_one_length():
    lengths = [300, 1900, 700, 600, 140]
    samples = [
        {
            "input_ids": torch.full((length,), number + 1),
            "labels": torch.arange(length),
            "pixel_values": torch.full((1, 3, 2, 2), float(number)),
        }
        for number, length in enumerate(lengths)
    ]
    rows = pack_rows(samples)
    assert [row["input_ids"].unique().tolist() for row in rows] == [[1, 3, 4, 5], [2]]
    assert [row["pixel_values"][:, 0, 0, 0].tolist() for row in rows] == [[0, 2, 3, 4], [1]]
    batch = collate(rows, ROW_TOKENS)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, ROW_TOKENS) and len(batch["pixel_values"]) == 5
    assert batch["attention_mask"].sum(dim=1).tolist() == [1740, 1900]
    assert (batch["labels"][0, 1740:] == IGNORE_INDEX).all() and batch["labels"][0, 300] == 0


def test_a_round_that_was_disturbed_does_not_move_the_median():
    quiet, disturbed = (measured(1.0, 8), measured(0.5, 4)), (measured(1.0, 8), measured(5.0, 4))
    assert medians(compare_rounds([quiet, disturbed, quiet]))["speed_ratio"] == 2


@pytest.mark.parametrize(
    ("changes", "agreed"),
    [
        ({}, True),
        ({"loss": 2.0001}, True),
        ({"loss": 2.001}, False),
        ({"grad_norm": 5.001}, True),
        ({"grad_norm": 5.01}, False),
        ({"grad_norms": {"projectors": 3.01, "language_model": 4.0}}, False),
    ],
    ids=str,
)
def test_agreement(changes, agreed):
    assert within_tolerance(relative_differences(measured(1.0, 8), measured(1.0, 8, **changes))) == agreed


def test_different_trained_modules_are_refused():
    with pytest.raises(ValueError, match="but B projectors"):
        relative_differences(measured(1.0, 8), measured(1.0, 8, grad_norms={"projectors": 5.0}))


def test_lengths_are_those_that_the_readme_states():
    lengths = np.array(text_lengths(20_000, np.random.default_rng(0)))
    assert lengths.min() == SHORTEST and lengths.max() == LONGEST
    assert abs(lengths.mean() - 197) < 8
    padded = [max(batch) + 256 for batch in lengths.reshape(-1, 8)]
    assert abs((lengths.mean() + 256) / np.mean(padded) - 0.67) < 0.02


def run_tiny(out, *words):
    command = [sys.executable, str(BENCH), "--shape", "tiny", "--batch", "4", "--rounds", "1", "--steps", "2"]
    return subprocess.run([*command, "--out", str(out), *words], capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), LOGITS_TO_KEEP, ("--a", "loop"), PACKED], ids=str)
def test_the_whole_program(tmp_path, words):
    done = run_tiny(tmp_path / "out.json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("tiny ") and "x the real tokens/s of A" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    a, b = written["rounds"][0]
    assert len(a["steps"]) == len(b["steps"]) == WARMUP_STEPS + 2
    if words == PACKED:
        assert "its samples attend to each other" in done.stdout and written["median"]["fill_a"] > 0.7
    else:
        # The same samples in the same steps: in bf16 the losses of all steps stay together.
        assert written["median"]["loss_difference"] < 2e-3
    assert {step["loss"] for step in a["steps"]} != {a["steps"][0]["loss"]}


@pytest.mark.slow
def test_b_with_a_feature_cache(tmp_path):
    done = run_tiny(tmp_path / "out.json", "--", "--objective.feature_cache", str(tmp_path / "features"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "features").glob("*/*.shard"))) == 2  # in fp32 and in bf16
    assert json.loads((tmp_path / "out.json").read_text())["median"]["loss_difference"] < 2e-3


@pytest.mark.slow
def test_variants_that_compute_something_else_are_refused(tmp_path):
    done = run_tiny(tmp_path / "out.json", "--", "--data.max_length", "60")
    assert done.returncode == 1 and "do not compute the same" in done.stderr, done.stdout + done.stderr
    assert not (tmp_path / "out.json").exists()
