"""Both tests of significance, against scipy's."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy import stats

from lorafleet_serving.adapters.significance import greater, more_often

counts = st.tuples(st.integers(0, 60), st.integers(0, 60))


@settings(deadline=None)
@given(counts, counts)
def test_hits_are_weighed_as_fishers_exact_test_does(first: tuple[int, int], second: tuple[int, int]) -> None:
    table = [list(first), list(second)]
    wanted = stats.fisher_exact(table, alternative="greater").pvalue
    assert more_often(first[0], sum(first), second[0], sum(second)) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


samples = st.lists(st.integers(0, 12).map(float), min_size=2, max_size=40)


@settings(deadline=None)
@given(samples, samples)
def test_ranks_are_weighed_as_the_rank_sum_test_does(first: list[float], second: list[float]) -> None:
    assume(len({*first, *second}) > 1)
    wanted = stats.mannwhitneyu(first, second, alternative="greater", method="asymptotic").pvalue
    assert greater(first, second) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_what_is_all_the_same_is_no_greater() -> None:
    assert greater([1.0] * 10, [1.0] * 10) == 1.0
