"""bench/serving.py: what it calls crossed and settled, and the whole program for a few seconds."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import serving

BENCH = Path(__file__).parents[2] / "bench" / "serving.py"


def test_the_summary_has_the_right_seconds():
    measured = serving.Measured(
        latency=[(second, 1.0 if second <= 60 else 3.0) for second in range(120)],
        first_token=[0.5],
        tokens=1200,
        cpu_seconds=6,
    )
    memory = [(second, 100.0 + min(second, 30)) for second in range(120)]
    result = serving.summary(measured, memory, [serving.Case({}, "a")] * 2, SimpleNamespace(seconds=120.0))
    assert (result["latency_without"]["median"], result["latency_with_slow_clients"]["p99"]) == (1.0, 3.0)
    assert (result["memory_when_settled"], result["memory_largest"], result["memory_at_end"]) == (130.0, 130.0, 130.0)
    assert (result["tokens_per_second"], result["different_answers"]) == (10.0, 1)


@pytest.mark.slow
def test_the_whole_program(tmp_path):
    words = [
        "--clients",
        "8",
        "--seconds",
        "6",
        "--images",
        "4",
        "--questions",
        "4",
        "--out",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 crossed" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["requests"] > 20 and written["slow_bytes"] > 4
    assert written["different_answers"] == 16  # or a crossed one could be missed
    assert "mmchat_generated_tokens_total" in written["metrics"]
