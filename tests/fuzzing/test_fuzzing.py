"""A share of the fuzzing, and that it notices what goes wrong."""

import random
import subprocess
import sys

import numpy as np
import pytest

from mmchat.errors import UserError
from tests.fuzzing import worker
from tests.fuzzing.damage import as_json, damaged_values
from tests.fuzzing.worker import run_cases
from tests.launching import launch_environment


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("images", 3000), ("tables", 400), ("directories", 100)])
def test_no_damaged_file_is_a_traceback(kind, count):
    command = [sys.executable, "-m", "tests.fuzzing", f"--{kind}", str(count), "--seed", "1"]
    done = subprocess.run(command, env=launch_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{kind}: {count:,} cases" in done.stdout and " 0 failed" in done.stdout


def endless(number):
    while True:
        pass


def case(number):
    """Five ways to end well or badly."""
    if number == 1:
        raise UserError("damaged")
    if number == 2:
        raise KeyError("x")
    if number == 3:
        endless(number)
    if number == 4:
        return str(len(np.ones(60_000_000, np.uint8)))
    return ""


def test_every_way_to_fail_is_noticed(monkeypatch):
    monkeypatch.setattr(worker, "MAX_SECONDS", 2.0)  # a first touch of memory can take half a second
    monkeypatch.setattr(worker, "MAX_BYTES", 5e7)
    report = run_cases("cases", case, 6)
    assert (report.cases, report.opened, report.refused) == (6, 2, 1)
    assert [number for number, _ in report.failures] == [2, 3, 4]
    (_, error), (_, death), (_, memory) = report.failures
    assert error.startswith("KeyError: 'x'") and death == "the process ended by signal SIGPROF"
    assert memory.endswith(" MB")


def test_numbers_too_long_for_python_are_written():
    assert as_json({"a": [10**5000, 1]}) == b'{"a": [1' + b"0" * 5000 + b", 1]}"


def test_damage_depends_on_the_seed_alone():

    made = [repr(damaged_values({"a": 1, "b": {"c": [1, 2]}}, random.Random(7))) for _ in range(2)]
    assert made[0] == made[1]
