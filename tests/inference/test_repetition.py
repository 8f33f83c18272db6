"""The guard stops exactly when a text loops, for every period."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.errors import UserError
from mmchat.inference.repetition import Loop, RepetitionGuard

PERIODS, REPEATS, LEAST = 5, 3, 8


def guarded(tokens, **limits):
    """The guard's result after every token, and the loop that it found."""
    guard = RepetitionGuard(**(limits or {"repeats": REPEATS, "max_period": PERIODS, "min_tokens": LEAST}))
    return [guard(tokens[: n + 1]) for n in range(len(tokens))], guard.loop


def slow_period(tokens):
    """A slow reference: the shortest period that repeats often and long enough at the end of a text, or None."""
    for period in range(1, PERIODS + 1):
        tail = tokens[-max(period * REPEATS, LEAST) :]
        if len(tail) == max(period * REPEATS, LEAST) and tail[period:] == tail[:-period]:
            return period
    return None


@given(st.lists(st.integers(0, 2), min_size=1, max_size=24))
def test_it_stops_exactly_on_loops(tokens):
    fired, loop = guarded(tokens)
    periods = [slow_period(tokens[: n + 1]) for n in range(len(tokens))]
    assert fired == [period is not None for period in periods]
    first = next((n for n, period in enumerate(periods) if period), None)
    if first is None:
        assert loop is None
    else:
        period, end = periods[first], first + 1
        assert loop == Loop(begin=end - max(period * REPEATS, LEAST), period=period, end=end)


@pytest.mark.parametrize("period", range(1, 65))
def test_every_period_within_limits_is_found(period):
    piece, before = list(range(period)), [100, 101, 102]
    row = before + piece * (8 if period >= 8 else 64)
    fired, loop = guarded(row, repeats=8, max_period=64, min_tokens=64)
    first = len(before) + min(max(64, 8 * period), 256)
    assert fired.index(True) == first - 1
    assert loop == Loop(begin=len(before), period=period, end=first)


@pytest.mark.parametrize(
    "row",
    [
        list(range(130)) * 2,  # two copies of a long piece
        list(range(85)) * 3,  # three copies, but 255 tokens
        [1] * 63 + [2] + [1] * 63,  # never 64 in a row
        (list(range(20)) * 7 + [99]) * 2,  # seven copies
    ],
)
def test_it_does_not_stop_below_its_limits(row):
    fired, loop = guarded(row, repeats=8, max_period=64, min_tokens=64)
    assert not any(fired)
    assert loop is None


@pytest.mark.parametrize("period", [40, 65, 86, 100, 300, 1000])
def test_three_copies_of_any_length_are_a_loop(period):
    piece, before = list(range(period)), [5000, 5001]
    fired, loop = guarded(before + piece * 8, repeats=8, max_period=64, min_tokens=64)
    needed = max(256, 3 * period)
    assert fired.index(True) == len(before) + needed - 1
    assert loop == Loop(len(before), period, len(before) + needed)


def test_repeats_must_be_at_least_two():
    with pytest.raises(UserError, match="repeats must be at least 2, found 1"):
        RepetitionGuard(repeats=1)
