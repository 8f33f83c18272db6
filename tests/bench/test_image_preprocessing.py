"""bench/image_preprocessing.py: its arithmetic, and the whole program on one image of each size."""

import json
import subprocess
import sys
from pathlib import Path

import image_preprocessing
import pytest

BENCH = Path(__file__).parents[2] / "bench" / "image_preprocessing.py"


def test_summary_has_medians_and_says_whether_bits_are_equal():
    case = image_preprocessing.CASES[0]
    rounds = [
        {"transformers": {case.name: a}, "ours": {case.name: b}, "ours_drafted": {case.name: 300}}
        for a, b in ((100, 150), (10, 160), (120, 170))
    ]
    line = image_preprocessing.summary(case, rounds, {"ours": 0.0, "ours_drafted": 0.0041})
    assert line.startswith("640x480 to 224: 1.60 x the images/s of A (160 against 100), bit-equal; with draft 3.00 x")
    assert "differs by 1.0e-06" in image_preprocessing.summary(case, rounds, {"ours": 1e-6, "ours_drafted": 0.0})


@pytest.mark.slow
def test_the_whole_program(tmp_path):
    words = ["--images", "1", "--rounds", "1", "--seconds", "0.01", "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bit-equal") == len(image_preprocessing.CASES) == 4
    assert json.loads((tmp_path / "out.json").read_text())["rounds"][0]["ours"].keys() == {
        c.name for c in image_preprocessing.CASES
    }
