"""The benchmark of CPU settings: what it measures of a command."""

import os
import sys

import pytest
from busy_machine import CONTROL, Work, environment_of, measure, table, written_lines

PROGRAM = """
import sys, time
time.sleep(.5)
for number in range(8):
    with open(sys.argv[1], "a") as file:
        file.write("{}\\n")
    time.sleep(.25)
"""


def test_work_is_measured_after_start_up(tmp_path):
    out = tmp_path / "out.jsonl"
    work = measure([sys.executable, "-c", PROGRAM, str(out)], dict(os.environ), lambda: written_lines(out))
    assert 1 <= work.amount <= 7  # from the first line that was seen
    assert work.seconds >= 0.2 * work.amount


def test_a_command_that_fails_ends_the_benchmark():
    with pytest.raises(SystemExit, match="why it failed"):
        measure([sys.executable, "-c", "import sys; sys.exit('why it failed')"], dict(os.environ))


def test_variants_differ_by_the_settings_only(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "OMP_WAIT_POLICY" not in environment_of("set")
    assert {**environment_of("set"), CONTROL: "off"} == environment_of("bare")


def test_shares_are_of_the_calm_machine():
    cases = {("set", 0): [Work(100, 10, 20)], ("set", 2): [Work(100, 20, 25)]}
    assert table(cases)[-1] == "| set | 2 | 5 | 50% | 4 | 80% |"
