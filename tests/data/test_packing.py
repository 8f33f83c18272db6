"""Packing is a pure plan: every sample once, budgets kept, the same on every machine, ranks alike."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.constants import IGNORE_INDEX
from mmchat.data.collate import Collator
from mmchat.data.length_grouping import group_by_length
from mmchat.data.packing import pack
from mmchat.data.records import Rejected
from mmchat.data.samples import EncodedSample, Sample

TOKENS, IMAGES = 64, 4
samples = st.lists(st.tuples(st.integers(0, TOKENS), st.integers(0, IMAGES)), max_size=60)
ranks = st.integers(1, 5)


def plan(sizes, tokens=TOKENS, images=IMAGES, ranks=1, how=pack):
    return how(np.array(sizes, np.int64).reshape(-1, 2), np.array([tokens, images]), ranks)


def tokens_of(row, sizes):
    return sum(sizes[place][0] for place in row)


def padded_tokens_of(row, sizes):
    return len(row) * max((sizes[place][0] for place in row), default=0)


@settings(deadline=None)
@given(sizes=samples, ranks=ranks, images=st.sampled_from([IMAGES, math.inf]))
@pytest.mark.parametrize(("how", "tokens_of"), [(pack, tokens_of), (group_by_length, padded_tokens_of)])
def test_every_sample_once_in_rows_within_budget_equally_many_on_every_rank(how, tokens_of, sizes, ranks, images):
    rounds = plan(sizes, images=images, ranks=ranks, how=how)
    assert {len(rows) for rows in rounds} == {ranks}
    assert sorted(place for rows in rounds for row in rows for place in row) == list(range(len(sizes)))
    for row in (row for rows in rounds for row in rows):
        assert tokens_of(row, sizes) <= TOKENS and sum(sizes[place][1] for place in row) <= images
        assert row == sorted(row)
    assert rounds == plan(sizes, images=images, ranks=ranks, how=how)


@settings(deadline=None)
@given(sizes=samples, ranks=ranks)
def test_no_round_is_superfluous(sizes, ranks):
    """Best fit decreasing by the book, which opens a row when it needs one, needs no fewer."""
    rows: list[int] = []
    for tokens, _ in sorted(sizes, reverse=True):
        room = [place for place, held in enumerate(rows) if held + tokens <= TOKENS]
        if room:
            rows[max(room, key=rows.__getitem__)] += tokens
        else:
            rows.append(tokens)
    assert len(plan(sizes, images=math.inf, ranks=ranks)) <= max(1, math.ceil(len(rows) / ranks))


@settings(deadline=None)
@given(sizes=samples, ranks=ranks)
def test_ranks_differ_by_at_most_the_longest_sample(sizes, ranks):
    (rows,) = plan(sizes, tokens=60 * TOKENS, images=math.inf, ranks=ranks)
    loads = [tokens_of(row, sizes) for row in rows]
    assert max(loads) - min(loads) <= max((tokens for tokens, _ in sizes), default=0)


def test_a_tight_budget_is_filled_by_best_fit():
    """Emptiest first has 5 + 2 and 4 + 3, and no room for the other 2."""
    sizes = [(5, 0), (4, 0), (3, 0), (2, 0), (2, 0)]
    ((first,), (second,)) = plan(sizes, tokens=8, ranks=1)
    assert {tokens_of(first, sizes), tokens_of(second, sizes)} == {8}


def test_the_plan_is_portable():
    sizes = [(30, 1), (12, 0), (64, 2), (7, 0), (41, 1), (22, 1), (9, 0), (35, 1)]
    assert plan(sizes, ranks=2) == [[[2], [1, 3, 7]], [[4, 6], [0, 5]]]


few = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=7)


@settings(deadline=None)
@given(sizes=few, ranks=st.integers(1, 3))
def test_padded_forwards_are_as_few_as_can_be_and_their_largest_as_small(sizes, ranks):
    """Against every way to cut the samples, from the longest down, into stretches."""
    tokens, images = 16, 3
    rounds = plan(sizes, tokens, images, ranks, how=group_by_length)
    sizes_down = sorted(sizes, key=lambda size: -size[0])
    ways = []
    for cuts in product([False, True], repeat=len(sizes) - 1):
        ends = [*(at + 1 for at, cut in enumerate(cuts) if cut), len(sizes)]
        stretches = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        largest = max(padded_tokens_of(stretch, sizes_down) for stretch in stretches)
        most_images = max(sum(sizes_down[place][1] for place in stretch) for stretch in stretches)
        if largest <= tokens and most_images <= images:
            ways.append((math.ceil(len(stretches) / ranks), largest))
    found = max(padded_tokens_of(row, sizes) for rows in rounds for row in rows)
    assert (len(rounds), found) == min(ways)


def test_samples_of_similar_length_share_a_padded_forward():
    sizes = [(9, 0), (3, 0), (8, 0), (3, 0), (2, 0), (9, 0)]
    assert plan(sizes, tokens=27, ranks=1, how=group_by_length) == [[[0, 2, 5]], [[1, 3, 4]]]


def sample(name, ids, labels=None):
    return Sample(0, name, EncodedSample(ids, labels, []))


def test_a_packed_batch_has_one_row_and_counts_samples():
    no = IGNORE_INDEX
    items = [sample("a", [1, 2, 3], [1, 2, 3]), Rejected("x:record 1", "x", "bad"), sample("b", [4, 5], [no, 5])]
    batch = Collator(pad_id=9, specs=[], packs=True)(items)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert batch.labels.tolist() == [[no, 2, 3, no, 5]]  # "a" says nothing about the first token of "b"
    assert (batch.packed, batch.lengths, batch.ids) == ([3, 2], [3, 2], ["a", "b"])
    assert (batch.tokens, batch.positions, batch.supervised) == (5, 5, 3)
    padded = Collator(pad_id=9, specs=[])(items)
    assert (padded.lengths, padded.supervised, padded.packed) == ([3, 2], 3, None)


@pytest.mark.parametrize("items", [[], [Rejected("x:record 1", "x", "bad")]])
def test_a_rank_takes_part_with_an_empty_row(items):
    batch = Collator(pad_id=9, specs=[], packs=True)(items)
    assert (batch.input_ids.tolist(), batch.packed, batch.lengths, batch.supervised) == ([[9]], [1], [], 0)
