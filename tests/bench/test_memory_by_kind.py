"""Memory by kind on a model small enough to count by hand, and bench/training_memory.py on a tiny shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from side_by_side.memory_by_kind import MemoryByKind
from torch import nn

BENCH = Path(__file__).parents[2] / "bench" / "training_memory.py"


def test_bytes_of_a_step_counted_by_hand():
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 2, bias=False))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([model[2].weight])
    kinds = MemoryByKind()
    with kinds:
        kinds.begin(model)
        for rows in (3, 4, 1):
            inputs = torch.ones(rows, 5)
            model(inputs).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    trained = 4 * 7 * 2
    assert kinds.sizes["parameters"] == 4 * 5 * 7 + trained
    assert kinds.sizes["gradients"] == trained
    assert kinds.sizes["moments"] == 2 * trained + 4  # AdamW counts its steps in a float
    assert (
        kinds.sizes["saved"] == 4 * 4 * 7
    )  # input of the second layer for four rows; weights are counted as parameters
    assert kinds.sizes["largest_saved"] == (4 * 4 * 7, "torch.float32[4, 7]")


@pytest.mark.slow
def test_the_whole_program(tmp_path):
    words = ["--shape", "tiny", "--batch", "4", "--steps", "1", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = json.loads((tmp_path / "out.json").read_text())["bytes"]
    for kind in ("gradients", "moments"):
        assert sizes["a"][kind] == pytest.approx(sizes["b"][kind], rel=0.01), kind
    assert (
        sizes["a"]["parameters"] / 2 < sizes["b"]["parameters"] < sizes["a"]["parameters"]
    )  # B holds the tower in bf16
    assert 0 < sizes["b"]["saved"] < sizes["a"]["saved"] and sizes["peak_b"] > 0
