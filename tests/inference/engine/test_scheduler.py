"""Slots, chunks and moves, without a model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.inference.engine.request import Handle, Prompt, Request
from mmchat.inference.engine.scheduler import Running, Scheduler


def running(length=4, priority=0, limit=8):
    request = Request(Prompt([1] * length), priority=priority)
    return Running(Handle(request, lambda: None), request, request.prompt, limit)


def prefill(scheduler):
    """Prefill the next chunk, and give complete requests their first token."""
    chunk = scheduler.next_chunk()
    for one in scheduler.prefilled(chunk):
        one.ids.append(7)
    return chunk


def test_higher_priorities_are_admitted_first_and_equal_ones_in_order():
    scheduler = Scheduler(3, 100)
    waiting = [running(priority=priority) for priority in (0, 1, 0, 1)]
    for one in waiting:
        scheduler.add(one)
    assert scheduler.admit() == [waiting[1], waiting[3], waiting[0]]
    assert [one.slot for one in scheduler.running] == [0, 1, 2] and scheduler.waiting == 1


def test_requests_cancelled_while_waiting_take_no_slot():
    scheduler = Scheduler(1, 100)
    first, second = running(), running()
    scheduler.add(first)
    scheduler.add(second)
    first.handle.cancel()
    assert scheduler.admit() == [second]


@pytest.mark.parametrize(
    ("lengths", "chunks"),
    [
        ([8, 8, 8], [[8, 8], [8]]),  # 16 tokens per chunk
        ([40, 3], [[16], [16], [8], [3]]),  # a long prompt in pieces
        ([3, 8, 8], [[3], [8, 8]]),  # 3 beside 8 would be 31 % padding
        ([5, 4, 5], [[5, 4, 5]]),
    ],
)
def test_prompts_are_prefilled_in_chunks_in_order(lengths, chunks):
    scheduler = Scheduler(3, 16)
    for length in lengths:
        scheduler.add(running(length))
    scheduler.admit()
    found = []
    while scheduler.next_chunk() is not None:
        found.append(prefill(scheduler).lengths)
    assert found == chunks


def test_holes_are_closed_from_the_top_once_nobody_waits_for_them():
    scheduler = Scheduler(4, 100)
    requests = [running(length) for length in (4, 4, 4, 5)]
    for one in requests:
        scheduler.add(one)
    scheduler.admit()
    while scheduler.next_chunk() is not None:
        prefill(scheduler)
    requests[3].ids.append(9)
    scheduler.leave(requests[0])
    scheduler.leave(requests[2])
    assert scheduler.decode_span() == (1, 4)
    assert scheduler.moves() == [(3, 0, 6)]  # 5 of the prompt and the first token; the second is not in the cache yet
    assert scheduler.decode_span() == (0, 2)
    assert requests[3].slot == 0 and scheduler.slots[:2] == [requests[3], requests[1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3), st.integers(1, 6)), max_size=25), st.data())
def test_every_request_is_served_once_in_one_slot(requests, data):
    """Any lengths, priorities and cancellations: slots are never shared, holes close, and all requests end."""
    scheduler = Scheduler(3, 16)
    added = [running(length, priority, limit) for length, priority, limit in requests]
    for one in added:
        scheduler.add(one)
    steps = 0
    while not scheduler.idle:
        steps += 1
        assert steps < 1000
        scheduler.admit()
        scheduler.moves()
        occupied = [one.slot for one in scheduler.running]
        assert occupied == list(range(len(occupied)))
        chunk = scheduler.next_chunk()
        if chunk is not None:
            assert sum(chunk.lengths) <= 16
            prefill(scheduler)
        span = scheduler.decode_span()
        for one in scheduler.slots[slice(*span)] if span else []:
            if one is not None and one.ids:
                one.ids.append(7)
                if len(one.ids) >= one.limit or data.draw(st.booleans()):
                    scheduler.leave(one)
    assert all(one.ids for one in added)
