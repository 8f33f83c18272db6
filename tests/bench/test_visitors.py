"""bench/visitors.py: what it reports, and the whole program with a few visitors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import visitors

BENCH = Path(__file__).parents[2] / "bench" / "visitors.py"


def test_the_summary_compares_both_ways():
    at_once = [visitors.Answered("a", 1.0, 2.0), visitors.Answered("b", 1.0, 4.0)]
    in_turn = [visitors.Answered("a", 0.5, 1.5), visitors.Answered("c", 2.0, 5.0)]
    result = visitors.summary(at_once, in_turn, [1.0, 5.0, 7.0])
    assert (result["different"], result["different_answers"], result["alone"]) == (1, 2, 2.5)
    assert (result["wait"]["at_once"]["median"], result["wait"]["one_at_a_time"]["median"]) == (3.0, 3.25)
    assert result["cpu_per_answer"] == {"at_once": 2.0, "one_at_a_time": 1.0}
    assert "2 visitors, 1 answers differ" in visitors.line_of(result)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (None, ""),
        ([{"role": "user", "content": "What?"}], ""),
        ([{"role": "assistant", "content": "a red 7"}], "a red 7"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}]}], "a"),
    ],
)
def test_the_text_of_an_answer(messages, text):
    assert visitors.answer_of(messages) == text


@pytest.mark.slow
def test_the_whole_program(tmp_path):
    words = ["--visitors", "3", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["visitors"], written["different"]) == (3, 0)
    assert written["different_answers"] > 1  # or a crossed one could be missed
