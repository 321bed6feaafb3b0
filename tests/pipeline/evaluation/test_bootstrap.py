"""The paired bootstrap interval."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from lorafleet_pipeline.evaluation.bootstrap import paired_interval


def test_interval_is_that_of_the_normal_approximation_for_many_rows() -> None:
    draw = random.Random(0)
    other = [draw.random() for _ in range(2000)]
    candidate = [score + draw.gauss(0.1, 0.2) for score in other]
    differences = [left - right for left, right in zip(candidate, other, strict=True)]
    mean = sum(differences) / len(differences)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in differences) / len(differences))
    half = 1.96 * deviation / math.sqrt(len(differences))
    assert paired_interval(candidate, other, seed=0) == pytest.approx((mean - half, mean + half), abs=0.05 * half)


def test_pairing_removes_what_rows_have_in_common() -> None:
    hard_and_easy = [0.0, 1.0] * 50
    better = [score + 0.1 for score in hard_and_easy]
    assert paired_interval(better, hard_and_easy, seed=0) == pytest.approx((0.1, 0.1))


def test_the_same_seed_gives_the_same_interval() -> None:
    scores, others = [0.1, 0.9, 0.4, 0.3], [0.2, 0.1, 0.5, 0.2]
    assert paired_interval(scores, others, seed=3) == paired_interval(scores, others, seed=3)


def test_interval_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    draw = random.Random(1)
    other = [draw.random() for _ in range(250)]
    candidate = [score + draw.gauss(0.05, 0.2) for score in other]
    differences = [left - right for left, right in zip(candidate, other, strict=True)]
    expected = bootstrap(
        (differences,), statistics.fmean, vectorized=False, method="percentile", n_resamples=4000, rng=2
    )
    low, high = expected.confidence_interval
    assert paired_interval(candidate, other, seed=0) == pytest.approx((low, high), abs=0.05 * (high - low))
