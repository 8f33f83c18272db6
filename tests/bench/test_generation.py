"""bench/generation.py: captions have the forced lengths, and the whole program on a tiny shape."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import generation
import numpy as np
import pytest
import torch
from side_by_side.caption_runs import ForcedLengths

BENCH = Path(__file__).parents[2] / "bench" / "generation.py"
STOPS = [2, 0]


def test_captions_have_the_forced_lengths():
    """A batch of two and a batch of one. Without stop tokens the model would generate 5, then 6."""
    forced = ForcedLengths([1, 3, 2], STOPS)

    def forward(rows, tokens):
        logits = torch.zeros(rows, tokens, 8)
        logits[:, -1, 5 if tokens > 1 else 6] = 1
        logits[:, -1, STOPS] = 9
        forced(None, (), {"input_ids": torch.zeros(rows, tokens, dtype=torch.long)}, SimpleNamespace(logits=logits))
        return logits[:, -1].argmax(dim=-1).tolist()

    assert [forward(2, 4), forward(2, 1), forward(2, 1)] == [[2, 5], [2, 6], [2, 2]]
    assert [forward(1, 4), forward(1, 1)] == [[5], [2]]
    assert forced.ids == [[2], [5, 6, 2], [5, 2]]
    assert forced.margins == [[1], [1, 1, 1], [1, 1]]


def test_other_ids_end_the_program_unless_two_tokens_tie():
    alone = {"ids": [[5, 6, 7, 2], [5, 2]], "margins": [[1, 1e-5, 1, 1], [1, 1]]}
    assert generation.refuse_different({"alone": alone, "engine": {"ids": [[5, 6, 7, 9], [5, 9]]}}) == 0
    assert generation.refuse_different({"alone": alone, "engine": {"ids": [[5, 8, 8, 2], [5, 2]]}}) == 1
    with pytest.raises(SystemExit, match=r"engine generated another token 0 of caption 1 .* the two best are 1\.0e"):
        generation.refuse_different({"alone": alone, "engine": {"ids": [[5, 6, 7, 2], [6, 2]]}})


def test_lengths_are_those_that_the_readme_states():
    lengths = generation.caption_lengths(20_000)
    assert min(lengths) == generation.SHORTEST and max(lengths) == generation.LONGEST
    assert abs(np.mean(lengths) - generation.MEAN) < 2


@pytest.mark.slow
def test_the_whole_program(tmp_path):
    words = ["--shape", "tiny", "--images", "10", "--rounds", "1", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in batches of 16" in done.stdout and "ids in fp32 are equal" in done.stdout
    (one,) = json.loads((tmp_path / "out.json").read_text())["rounds"]
    assert one["alone"]["tokens"] == one["padded"]["tokens"] == one["engine"]["tokens"]
