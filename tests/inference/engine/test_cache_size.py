"""The cache grows to what waiting requests need, within its budget, and no request waits for ever."""

from hypothesis import given
from hypothesis import strategies as st

from mmchat.inference.engine.cache_size import CacheLimits, CacheSize, next_size

LIMITS = CacheLimits(slots=8, length=1000, token_bytes=10, budget=20_000)


@given(
    st.integers(0, 8),
    st.integers(0, 8),
    st.sampled_from([0, 128, 256, 512, 1000]),
    st.lists(st.integers(1, 1000), min_size=1, max_size=12),
)
def test_the_next_size_has_room_for_the_first_request(running, kept, length, needs):
    slots = min(8, LIMITS.affordable(length) if length else 0)
    size = CacheSize(slots, length)
    running, kept = min(running, slots), min(kept, slots - min(running, slots))
    found = next_size(size, LIMITS, running, kept, needs)
    if found is None:
        assert running > 0
        assert (running + 1) * max(length, LIMITS.rounded(needs[0])) * 10 > 20_000 or running == 8
        return
    assert found.slots * found.length * 10 <= 20_000
    assert found.length >= needs[0]
    assert running < found.slots <= 8
    if running:
        assert found.length >= length
    if found.length >= length and LIMITS.affordable(found.length) >= slots:
        assert found.slots >= slots


def test_it_grows_by_doubling_and_keeps_finished_requests():
    assert next_size(CacheSize(), LIMITS, 0, 0, [100]) == CacheSize(1, 128)
    assert next_size(CacheSize(1, 128), LIMITS, 0, 1, [100]) == CacheSize(2, 128)
    assert next_size(CacheSize(2, 128), LIMITS, 2, 0, [100]) == CacheSize(4, 128)
    assert next_size(CacheSize(4, 128), LIMITS, 1, 0, [200]) == CacheSize(4, 256)


def test_a_long_request_waits_until_there_is_room_and_short_ones_get_it_back():
    assert next_size(CacheSize(8, 128), LIMITS, 3, 0, [900]) is None
    assert next_size(CacheSize(8, 128), LIMITS, 1, 4, [900]) == CacheSize(2, 1000)
    assert next_size(CacheSize(2, 1000), LIMITS, 0, 2, [100] * 2) == CacheSize(2, 1000)
    assert next_size(CacheSize(2, 1000), LIMITS, 0, 2, [100] * 9) == CacheSize(8, 128)
