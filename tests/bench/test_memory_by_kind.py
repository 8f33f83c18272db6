"""What memory is for, on a model small enough to count by hand, and the whole program on a tiny shape."""

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
    assert kinds.held["parameters"] == 4 * 5 * 7 + trained
    assert kinds.held["gradients"] == trained
    assert kinds.held["moments"] == 2 * trained + 4  # AdamW counts its steps in a float
    assert kinds.held["saved"] == 4 * 4 * 7  # what the second layer reads, of four rows; weights are counted already
    assert kinds.held["largest_saved"] == (4 * 4 * 7, "torch.float32[4, 7]")


@pytest.mark.slow
def test_the_whole_program(tmp_path):
    words = ["--shape", "tiny", "--batch", "4", "--steps", "1", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    held = json.loads((tmp_path / "out.json").read_text())["held"]
    for kind in ("gradients", "moments"):
        assert held["a"][kind] == pytest.approx(held["b"][kind], rel=0.01), kind
    assert held["a"]["parameters"] / 2 < held["b"]["parameters"] < held["a"]["parameters"]  # B holds the tower rounded
    assert 0 < held["b"]["saved"] < held["a"]["saved"] and held["peak_b"] > 0
