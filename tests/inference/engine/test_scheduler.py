"""Slots, chunks, prefixes and moves, without a model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.inference.engine.cache_size import CacheLimits
from mmchat.inference.engine.prefixes import common_length, prompt_keys
from mmchat.inference.engine.request import Handle, Prompt, Request
from mmchat.inference.engine.scheduler import Running, Scheduler

_numbers = iter(range(10**9, 2 * 10**9))


def running(length=4, priority=0, limit=8, ids=None):
    """A request; without `ids`, one that begins like no other."""
    request = Request(Prompt([next(_numbers) for _ in range(length)] if ids is None else ids), priority=priority)
    return Running(Handle(request, lambda: None), request, request.prompt, prompt_keys(request.prompt, None), limit)


def make_scheduler(slots, chunk, length=256):
    return Scheduler(CacheLimits(slots, length, 1, slots * length), chunk)


def admit(scheduler):
    """Grow and admit as the engine does."""
    return [*scheduler.resize(scheduler.next_size()), *scheduler.admit()]


def prefill(scheduler):
    """Prefill the next chunk, and give complete requests their first token."""
    chunk = scheduler.next_chunk()
    for one in scheduler.prefilled(chunk):
        one.ids.append(7)
    return chunk


def test_higher_priorities_are_admitted_first_and_equal_ones_in_order():
    scheduler = make_scheduler(3, 100)
    waiting = [running(priority=priority) for priority in (0, 1, 0, 1)]
    for one in waiting:
        scheduler.add(one)
    admit(scheduler)
    assert scheduler.running == [waiting[1], waiting[3], waiting[0]] and scheduler.waiting == 1


def test_requests_cancelled_while_waiting_take_no_slot():
    scheduler = make_scheduler(1, 100)
    first, second = running(), running()
    scheduler.add(first)
    scheduler.add(second)
    first.handle.cancel()
    admit(scheduler)
    assert scheduler.running == [second]


@pytest.mark.parametrize(
    ("lengths", "chunks"),
    [
        ([8, 8, 8], [[8, 8], [8]]),  # 16 tokens per chunk
        ([40, 3], [[16], [16], [8], [3]]),  # a long prompt in pieces
        ([3, 8, 8], [[3], [8, 8]]),  # 3 beside 8 would be 31 % padding
        ([5, 4, 5], [[5, 4, 5]]),
    ],
)
def test_padded_prompts_are_prefilled_in_chunks_in_order(lengths, chunks):
    scheduler = make_scheduler(3, 16)
    for length in lengths:
        scheduler.add(running(length))
    admit(scheduler)
    found = []
    while scheduler.next_chunk() is not None:
        found.append(prefill(scheduler).lengths)
    assert found == chunks


def test_packed_prompts_of_any_lengths_share_a_chunk():
    scheduler = Scheduler(CacheLimits(4, 256, 1, 1024), 16, packs=True)
    for length in (3, 8, 5, 1):
        scheduler.add(running(length))
    admit(scheduler)
    assert prefill(scheduler).lengths == [3, 8, 5]
    assert prefill(scheduler).lengths == [1]


def filled(scheduler, *requests):
    """Admit and prefill requests; each has one new token."""
    for one in requests:
        scheduler.add(one)
    copies = admit(scheduler)
    while scheduler.next_chunk() is not None:
        prefill(scheduler)
    return copies


def test_requests_stay_where_little_is_computed_for_nothing():
    scheduler = make_scheduler(4, 100)
    requests = [running(length) for length in (4, 4, 4, 5)]
    filled(scheduler, *requests)
    scheduler.leave(requests[1])
    assert scheduler.close_holes() == [] and scheduler.decode_span() == (0, 4)
    scheduler.leave(requests[2])
    scheduler.leave(requests[0])
    assert scheduler.close_holes() == [] and scheduler.decode_span() == (3, 4)  # alone, so nothing is wasted


def test_compacting_moves_the_highest_requests_to_the_lowest_slots():
    scheduler = make_scheduler(8, 200)
    requests = [running(length) for length in (4, 4, 4, 4, 4, 5)]
    filled(scheduler, *requests)
    requests[5].ids.append(9)
    for one in requests[1:5]:
        scheduler.leave(one)
    assert scheduler.close_holes() == [(5, 1, 6)]  # 5 of the prompt and the first token; the second is not cached yet
    assert requests[5].slot == 1 and scheduler.decode_span() == (0, 2)


CHAT = list(range(100, 140))


def test_the_next_question_takes_over_the_slot_of_the_conversation():
    scheduler = make_scheduler(2, 100)
    first = running(ids=CHAT)
    filled(scheduler, first)
    first.ids += [8, 9]
    scheduler.leave(first)
    second = running(ids=[*CHAT, 7, 8, 50, 51])  # the last new token was never in the cache
    assert filled(scheduler, second) == []
    assert (second.slot, second.handle.shared_tokens) == (first.slot, len(CHAT) + 2)


def test_a_beginning_that_runs_or_holds_more_is_copied():
    scheduler = make_scheduler(4, 100)
    first, second = running(ids=CHAT), running(ids=[*CHAT[:30], 1, 2])
    filled(scheduler, first)
    assert filled(scheduler, second) == [(first.slot, second.slot, 30)]
    first.ids += range(200, 240)
    scheduler.leave(first)
    third = running(ids=[*CHAT[:35], 3])  # the slot holds 80 tokens that may be asked for again
    assert filled(scheduler, third) == [(first.slot, third.slot, 35)]
    assert third.slot != first.slot


def test_equal_beginnings_are_computed_once_even_if_they_arrive_together():
    scheduler = make_scheduler(4, 100)
    requests = [running(ids=[*CHAT, number]) for number in range(3)]
    for one in requests:
        scheduler.add(one)
    assert admit(scheduler) == [] and scheduler.running == requests[:1]
    prefill(scheduler)
    assert [length for *_, length in admit(scheduler)] == [len(CHAT)] * 2
    assert scheduler.running == requests


@pytest.mark.parametrize("other", [CHAT[:10] + [1] * 11, [1, *CHAT]])
def test_little_in_common_is_not_taken_over(other):
    scheduler = make_scheduler(2, 100)
    first = running(ids=CHAT)
    filled(scheduler, first)
    scheduler.leave(first)
    filled(scheduler, one := running(ids=other))
    assert one.handle.shared_tokens == 0


def test_the_oldest_finished_request_gives_its_slot():
    scheduler = make_scheduler(2, 100)
    requests = [running(ids=[number * 10 + n for n in range(10)]) for number in range(2)]
    filled(scheduler, *requests)
    scheduler.leave(requests[1])
    scheduler.leave(requests[0])
    filled(scheduler, new := running())
    assert new.slot == requests[1].slot


def test_slots_of_images_are_equal_if_the_images_are():
    ids = [1, 7, 7, 7, 2, 7, 7]
    images = {"pixel_values": None}

    def keys(*contents):
        return prompt_keys(Prompt(ids, images, contents), 7)

    one = keys(("a", 3), ("b", 2))
    assert np.array_equal(one, keys(("a", 3), ("b", 2))) and len(set(one.tolist())) == 7
    assert common_length(one, keys(("a", 3), ("c", 2))) == 5
    assert common_length(one, keys(("c", 3), ("b", 2))) == 1
    unknown = [prompt_keys(Prompt(ids, images), 7) for _ in range(2)]
    assert common_length(*unknown) == 1
    embedded = [prompt_keys(Prompt(ids, embeddings=object()), 7) for _ in range(2)]
    assert common_length(*embedded) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.integers(0, 3), st.integers(1, 6))),
    st.data(),
)
def test_every_request_is_served_once_in_one_slot_with_its_own_tokens(requests, data):
    """Any beginnings in common, priorities and ends. A list per slot stands for its cache."""
    scheduler = make_scheduler(3, 16, length=40)
    added = [running(priority=priority, limit=limit, ids=ids) for ids, priority, limit in requests]
    for one in added:
        scheduler.add(one)
    cache = [[] for _ in range(3)]

    def copy(copies):
        for source, target, length in copies:
            cache[target] = cache[source][:length]

    steps = 0
    while not scheduler.idle:
        steps += 1
        assert steps < 2000
        copy(scheduler.resize(scheduler.next_size()))
        copy(scheduler.admit())
        copy(scheduler.close_holes())
        slots = [one.slot for one in scheduler.running]
        assert slots == sorted(set(slots)) and len(slots) <= 3
        for chunk in filter(None, [scheduler.next_chunk()]):
            assert sum(chunk.lengths) <= 16
            for one, length in zip(chunk.rows, chunk.lengths, strict=True):
                cache[one.slot] = [*cache[one.slot][: one.filled], *one.keys[one.filled : one.filled + length]]
            for one in scheduler.prefilled(chunk):
                one.ids.append(7)
        span = scheduler.decode_span()
        for slot in range(*span) if span else []:
            place, one = scheduler.next_position(slot), scheduler.slots[slot]
            assert place < scheduler.size.length
            token = one.ids[-1] if one is not None and one.ids else None
            cache[slot] = [*cache[slot][:place], token]
            if token is not None:
                one.ids.append(data.draw(st.integers(0, 1)))
                assert cache[slot] == one.content.tolist()
                if len(one.ids) >= one.limit or data.draw(st.booleans()):
                    scheduler.leave(one)
    assert all(one.ids for one in added)
