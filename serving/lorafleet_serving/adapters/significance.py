"""Whether two samples differ by more than chance makes them differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def more_often(hits: int, among: int, other_hits: int, other_among: int) -> float:
    """Probability that chance alone puts so many hits, or more, into the first of two samples.

    Fisher's exact test, one-sided: R. A. Fisher, "The Design of Experiments" (1935).

    Args:
        hits: those of the first sample.
        among: its size.
        other_hits: those of the second.
        other_among: its size.
    """
    total, total_hits = among + other_among, hits + other_hits
    most = min(among, total_hits)
    chances = _log_choose(total, total_hits)
    ways = (
        _log_choose(among, number) + _log_choose(other_among, total_hits - number)
        for number in range(hits, most + 1)
        if total_hits - number <= other_among
    )
    return min(1.0, math.fsum(math.exp(way - chances) for way in ways))


def greater(values: Sequence[float], others: Sequence[float]) -> float:
    """Probability that chance alone makes the first of two samples so much the greater one.

    The rank-sum test, one-sided, by its normal approximation: H. B. Mann and D. R. Whitney, "On a Test of Whether one
    of Two Random Variables is Stochastically Larger than the Other" (1947). Good from eight values each.
    """
    ranks, ties = _ranks([*values, *others])
    first, second = len(values), len(others)
    total = first + second
    above = sum(ranks[:first]) - first * (first + 1) / 2
    variance = first * second / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0.0:
        return 1.0  # All are the same.
    return 1.0 - NormalDist().cdf((above - first * second / 2 - 0.5) / math.sqrt(variance))


def _ranks(values: Sequence[float]) -> tuple[list[float], float]:
    """Rank of each value, those that tie sharing the mean of theirs, and the sum of t^3 - t over the ties."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    ties, start = 0.0, 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + 1 + end) / 2
        ties += (end - start) ** 3 - (end - start)
        start = end
    return ranks, ties


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
