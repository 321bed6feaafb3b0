"""How loads of a tier are counted."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, strategies as st

from lorafleet_serving.adapters.tier_counts import LOAD_BUCKETS_S, LoadTimes, TierCounts


@given(st.lists(st.floats(0, 1000)))
def test_every_load_is_in_one_bucket(seconds: list[float]) -> None:
    times = LoadTimes()
    for value in seconds:
        times = times.plus(value)
    for place, limit in enumerate(LOAD_BUCKETS_S):
        assert sum(times.counts[: place + 1]) == sum(value <= limit for value in seconds)
    assert times.num_loads == len(seconds)
    assert times.total_s == pytest.approx(sum(seconds))


def test_a_copy_stays_as_it_is_and_travels() -> None:
    counts = TierCounts(hits=1)
    counts.note_load("s3", 0.1)
    copy = counts.copy()
    counts.note_load("s3", 0.1)
    counts.note_load("file", 0.1)
    counts.hits += 1
    assert (copy.hits, copy.num_loads, counts.num_loads) == (1, 1, 3)
    assert pickle.loads(pickle.dumps(copy)) == copy
