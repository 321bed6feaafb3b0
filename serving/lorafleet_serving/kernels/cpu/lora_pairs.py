"""Shrink and expand of a LoRA in bf16 on a processor that multiplies pairs of bf16.

Every sum is taken in the same order whatever rows and ranks are computed beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lorafleet_serving.kernels.cpu.element import compiled, inlined, narrow, widen
from lorafleet_serving.kernels.cpu.lanes import (
    NUM_ELEMENTS,
    add_products,
    load_pairs,
    narrowed,
    no_sums,
    paired_high,
    paired_low,
    repeated_pair,
    store_pairs,
    total,
    widened_high,
    widened_low,
)

_BF16 = np.uint16(0)


@compiled
def shrink(x: Any, a: Any, v: Any) -> None:
    """v = x A.T, by blocks of rows and ranks that fit the registers; v in fp32."""
    num_rows, num_ranks = v.shape
    for rank in range(0, num_ranks - 3, 4):
        for row in range(0, num_rows - 1, 2):
            _dot_2_by_4(x[row : row + 2], a[rank : rank + 4], v[row : row + 2, rank : rank + 4])
        if num_rows % 2:
            _dot_1_by_4(x[num_rows - 1], a[rank : rank + 4], v[num_rows - 1, rank : rank + 4])
    for rank in range(num_ranks // 4 * 4, num_ranks):
        for row in range(num_rows):
            v[row, rank] = _dot(x[row], a[rank])


@compiled
def expand(v: Any, b: Any, y: Any) -> None:
    """y += v B.T in fp32, rounded once.

    Args:
        v: [num_rows, num_ranks] in fp32.
        b: [num_ranks, num_outs], the transpose of B; `num_outs` a multiple of `NUM_ELEMENTS`.
        y: [num_rows, num_outs], added to in place.
    """
    factors = _paired_factors(v)
    for first in range(0, y.shape[1], NUM_ELEMENTS):
        for row in range(0, y.shape[0] - 3, 4):
            _expand_4(factors[row : row + 4], b, y[row : row + 4], first)
        for row in range(y.shape[0] // 4 * 4, y.shape[0]):
            _expand_1(factors[row], b, y[row], first)


@compiled
def _paired_factors(v: Any) -> Any:
    """[num_rows, num_pairs, 2]: factors of two ranks in a word, rounded to bf16, and what the rounding took, likewise.

    A last rank without a neighbour has a zero for one.
    """
    num_rows, num_ranks = v.shape
    factors = np.zeros((num_rows, (num_ranks + 1) // 2, 2), dtype=np.uint32)
    for row in range(num_rows):
        for rank in range(num_ranks):
            shift = np.uint32(16 * (rank % 2))
            rounded = narrow(v[row, rank], _BF16)
            rest = narrow(v[row, rank] - widen(rounded), _BF16)
            factors[row, rank // 2, 0] |= np.uint32(rounded) << shift
            factors[row, rank // 2, 1] |= np.uint32(rest) << shift
    return factors


@inlined
def _paired(b: Any, pair: int, first: int) -> Any:
    """Elements of two ranks side by side, first half and second half of the columns."""
    left = load_pairs(b[2 * pair], first)
    right = load_pairs(b[min(2 * pair + 1, b.shape[0] - 1)], first)
    return paired_low(left, right), paired_high(left, right)


@inlined
def _added(sums: Any, factors: Any, values: Any) -> Any:
    rounded = add_products(sums, repeated_pair(factors[0]), values)
    return add_products(rounded, repeated_pair(factors[1]), values)


@compiled
def _expand_1(factors: Any, b: Any, y: Any, first: int) -> None:
    before = load_pairs(y, first)
    low, high = widened_low(before), widened_high(before)
    for pair in range(factors.shape[0]):
        b_low, b_high = _paired(b, pair, first)
        low, high = _added(low, factors[pair], b_low), _added(high, factors[pair], b_high)
    store_pairs(y, first, narrowed(low, high))


@compiled
def _expand_4(factors: Any, b: Any, y: Any, first: int) -> None:
    y0, y1, y2, y3 = load_pairs(y[0], first), load_pairs(y[1], first), load_pairs(y[2], first), load_pairs(y[3], first)
    low0, low1, low2, low3 = widened_low(y0), widened_low(y1), widened_low(y2), widened_low(y3)
    high0, high1, high2, high3 = widened_high(y0), widened_high(y1), widened_high(y2), widened_high(y3)
    for pair in range(factors.shape[1]):
        b_low, b_high = _paired(b, pair, first)
        low0, high0 = _added(low0, factors[0, pair], b_low), _added(high0, factors[0, pair], b_high)
        low1, high1 = _added(low1, factors[1, pair], b_low), _added(high1, factors[1, pair], b_high)
        low2, high2 = _added(low2, factors[2, pair], b_low), _added(high2, factors[2, pair], b_high)
        low3, high3 = _added(low3, factors[3, pair], b_low), _added(high3, factors[3, pair], b_high)
    store_pairs(y[0], first, narrowed(low0, high0))
    store_pairs(y[1], first, narrowed(low1, high1))
    store_pairs(y[2], first, narrowed(low2, high2))
    store_pairs(y[3], first, narrowed(low3, high3))


@compiled
def _dot(x: Any, a: Any) -> Any:
    sums = no_sums()
    for k in range(0, x.shape[0] - NUM_ELEMENTS + 1, NUM_ELEMENTS):
        sums = add_products(sums, load_pairs(x, k), load_pairs(a, k))
    return total(sums) + _rest(x, a)


@compiled
def _rest(x: Any, a: Any) -> Any:
    """The dot product of what a whole number of vectors leaves."""
    rest = np.float32(0)
    for k in range(x.shape[0] // NUM_ELEMENTS * NUM_ELEMENTS, x.shape[0]):
        rest += widen(x[k]) * widen(a[k])
    return rest


@compiled
def _dot_1_by_4(x: Any, a: Any, v: Any) -> None:
    """v[j] = x . a[j]"""
    s0 = s1 = s2 = s3 = no_sums()
    for k in range(0, x.shape[0] - NUM_ELEMENTS + 1, NUM_ELEMENTS):
        part = load_pairs(x, k)
        s0 = add_products(s0, part, load_pairs(a[0], k))
        s1 = add_products(s1, part, load_pairs(a[1], k))
        s2 = add_products(s2, part, load_pairs(a[2], k))
        s3 = add_products(s3, part, load_pairs(a[3], k))
    v[0], v[1] = total(s0) + _rest(x, a[0]), total(s1) + _rest(x, a[1])
    v[2], v[3] = total(s2) + _rest(x, a[2]), total(s3) + _rest(x, a[3])


@compiled
def _dot_2_by_4(x: Any, a: Any, v: Any) -> None:
    """v[i, j] = x[i] . a[j]"""
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = no_sums()
    for k in range(0, x.shape[1] - NUM_ELEMENTS + 1, NUM_ELEMENTS):
        x0, x1 = load_pairs(x[0], k), load_pairs(x[1], k)
        a0, a1, a2, a3 = load_pairs(a[0], k), load_pairs(a[1], k), load_pairs(a[2], k), load_pairs(a[3], k)
        s00, s10 = add_products(s00, x0, a0), add_products(s10, x1, a0)
        s01, s11 = add_products(s01, x0, a1), add_products(s11, x1, a1)
        s02, s12 = add_products(s02, x0, a2), add_products(s12, x1, a2)
        s03, s13 = add_products(s03, x0, a3), add_products(s13, x1, a3)
    v[0, 0], v[0, 1] = total(s00) + _rest(x[0], a[0]), total(s01) + _rest(x[0], a[1])
    v[0, 2], v[0, 3] = total(s02) + _rest(x[0], a[2]), total(s03) + _rest(x[0], a[3])
    v[1, 0], v[1, 1] = total(s10) + _rest(x[1], a[0]), total(s11) + _rest(x[1], a[1])
    v[1, 2], v[1, 3] = total(s12) + _rest(x[1], a[2]), total(s13) + _rest(x[1], a[3])
