"""The paired bootstrap: how sure a mean difference is, given the rows that happened to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
_RESAMPLES_AT_ONCE = 500


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def paired_interval(candidate: Sequence[float], other: Sequence[float], seed: int) -> Interval:
    """Percentile interval, at 95 %, of the mean of `candidate - other`, whose rows belong together.

    The same seed gives the same interval.
    """
    assert len(candidate) == len(other) > 0, "paired scores come in equal numbers"
    differences = np.asarray(candidate, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [
            differences[random.integers(0, len(differences), size=(_RESAMPLES_AT_ONCE, len(differences)))].mean(axis=1)
            for _ in range(RESAMPLES // _RESAMPLES_AT_ONCE)
        ]
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))
