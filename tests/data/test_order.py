"""The order is a pure function; how it is cut into ranks and micro-batches changes nothing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.data.epoch_plan import EpochPlan
from mmchat.data.order import BatchOrder, split_micro_batches

PORTABLE = ([5, 0, 6, 1, 7, 2, 4, 3], [2, 0, 4, 1, 7, 5, 3, 6])

orders = st.builds(
    BatchOrder, plan=st.integers(1, 40).map(lambda n: one(n)), seed=st.integers(0, 2**31), batch_size=st.integers(1, 24)
)


def one(samples):
    """A single source, each record once an epoch."""
    return EpochPlan((samples,), (samples,))


def test_the_order_is_portable():
    """Philox is specified bit for bit; these are its numbers, so another machine trains on the same order."""
    assert one(8).order(seed=0, epoch=0).tolist() == PORTABLE[0]
    assert one(8).order(seed=0, epoch=1).tolist() == PORTABLE[1]


@settings(deadline=None)
@given(order=orders, epochs=st.integers(1, 4))
def test_every_sample_once_an_epoch(order, epochs):
    total = order.plan.samples * epochs
    stream = [i for step in range(-(-total // order.batch_size)) for i in order.step(step)][:total]
    for epoch in range(epochs):
        assert sorted(stream[epoch * order.plan.samples : (epoch + 1) * order.plan.samples]) == list(
            range(order.plan.samples)
        )


def test_epochs_and_seeds_differ():
    shuffles = {tuple(one(50).order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(shuffles) == 4
    assert tuple(np.arange(50)) not in shuffles


@settings(deadline=None)
@given(data=st.data(), samples=st.integers(1, 40), seed=st.integers(0, 99), step=st.integers(0, 5))
def test_any_split_joins_to_the_same_step(data, samples, seed, step):
    micro, ranks, rounds = (data.draw(st.integers(1, 4)) for _ in range(3))
    order = BatchOrder(one(samples), seed, batch_size=micro * ranks * rounds)
    per_rank = [split_micro_batches(order.step(step), micro, rank, ranks) for rank in range(ranks)]
    assert {len(batches) for batches in per_rank} == {rounds}
    assert {len(batch) for batches in per_rank for batch in batches} == {micro}
    joined = [i for round_ in zip(*per_rank, strict=True) for batch in round_ for i in batch]
    assert joined == order.step(step) == BatchOrder(one(samples), seed, order.batch_size).step(step)


@settings(deadline=None)
@given(samples=st.integers(1, 20), epochs=st.integers(1, 3), rounds=st.integers(1, 3), ranks=st.integers(1, 3))
def test_the_last_step_of_an_epoch_run_is_smaller_and_takes_no_more_rounds_than_needed(samples, epochs, rounds, ranks):
    order = BatchOrder(one(samples), 0, batch_size=2 * ranks * rounds, total_samples=samples * epochs)
    steps = [order.step(step) for step in range(order.steps_in_total)]
    assert sum(map(len, steps)) == samples * epochs
    assert all(steps)
    per_rank = [split_micro_batches(steps[-1], 2, rank, ranks) for rank in range(ranks)]
    assert {len(batches) for batches in per_rank} == {-(-len(steps[-1]) // (2 * ranks))}
    assert sorted(i for batches in per_rank for batch in batches for i in batch) == sorted(steps[-1])


@settings(deadline=None)
@given(steps=st.integers(1, 9), batch_size=st.integers(1, 7), total=st.none() | st.integers(1, 40))
def test_the_samples_that_are_taken_are_those_of_the_steps(steps, batch_size, total):
    order = BatchOrder(EpochPlan((5, 9), (10, 4)), 3, batch_size, total)
    of_steps = {number for step in range(steps) for number in order.step(step)}
    assert order.taken(steps).tolist() == sorted(of_steps)


def test_epochs_as_a_fraction():
    order = BatchOrder(one(10), seed=0, batch_size=4)
    assert order.steps_in_total is None
    assert [order.epoch(step) for step in (0, 1, 5)] == [0, 0.4, 2]
