"""Two kills at each ZeRO stage; `python -m tests.invariants.killed_runs` does as many as are wanted."""

from datetime import date

import pytest

from tests.invariants.killed_runs import Kill, check, kill_stage


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_killed_run_ends_resumes_and_equals_the_uninterrupted_one(tmp_path, stage):
    assert len(kill_stage(tmp_path / "runs", stage, 2, seed=date.today().toordinal())) == 2


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("error: rank 1 died\nerror: rank 1 died\n", 1),
        ("", 1),
        ("error: rank 1 died\nTraceback (most recent call last):\n", 1),
        ("error: rank 1 died\n", 0),
        ("error: rank 1 died\nterminate called without an active exception\n", 1),
    ],
)
def test_the_script_can_fail(said, status):
    check(Kill("rank", 1.0, 1.0, 1, "error: rank 1 died\n"))
    with pytest.raises(AssertionError):
        check(Kill("rank", 1.0, 1.0, status, said))
