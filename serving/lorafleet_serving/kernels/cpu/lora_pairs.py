"""Shrink and expand of a LoRA in bf16 on a processor that multiplies pairs of bf16.

Every sum is taken in the same order whatever rows and ranks are computed beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lorafleet_serving.kernels.cpu.element import compiled, inlined, narrow, widen
from lorafleet_serving.kernels.cpu.lanes import (
    NUM_ELEMENTS,
    NUM_SUMS,
    add_products,
    load_pairs,
    narrowed,
    no_sums,
    paired_high,
    paired_low,
    repeated_pair,
    store_pairs,
    store_sums,
    totals,
    widened_high,
    widened_low,
)

_BF16 = np.uint16(0)


@compiled
def shrink(x: Any, a: Any, v: Any) -> None:
    """v = x A.T, by blocks of rows and ranks that fit the registers; v in fp32."""
    num_rows, num_ranks = v.shape
    sums = np.empty(NUM_SUMS, dtype=np.float32)
    for rank in range(0, num_ranks, 4):
        # Where fewer than four ranks are left, the last stands in for those that are not there.
        ranks = _four(a, rank)
        num_kept = min(4, num_ranks - rank)
        for row in range(0, num_rows - 3, 4):
            _dot_4_by_4(_four(x, row), ranks, sums)
            for i in range(4):
                v[row + i, rank : rank + num_kept] = sums[4 * i : 4 * i + num_kept]
        for row in range(num_rows // 4 * 4, num_rows):
            _dot_1_by_4(x[row], ranks, sums)
            v[row, rank : rank + num_kept] = sums[:num_kept]
    if x.shape[1] % NUM_ELEMENTS:
        _add_rest(x, a, v)


@compiled
def expand(v: Any, b: Any, y: Any) -> None:
    """y += v B.T in fp32, rounded once.

    Args:
        v: [num_rows, num_ranks] in fp32.
        b: [num_ranks, num_outs], the transpose of B; `num_outs` a multiple of `NUM_ELEMENTS`.
        y: [num_rows, num_outs], added to in place.
    """
    factors = _paired_factors(v)
    for row in range(0, y.shape[0] - 3, 4):
        _expand_4(factors[row : row + 4], b, _four(y, row))
    for row in range(y.shape[0] // 4 * 4, y.shape[0]):
        _expand_1(factors[row], b, y[row])


@compiled
def _paired_factors(v: Any) -> Any:
    """[num_rows, num_pairs, 2]: factors of two ranks in a word, rounded to bf16, and what the rounding took, likewise.

    A last rank without a neighbour has a zero for one.
    """
    num_rows, num_ranks = v.shape
    factors = np.empty((num_rows, (num_ranks + 1) // 2, 2), dtype=np.uint32)
    for row in range(num_rows):
        for pair in range(factors.shape[1]):
            left, right = v[row, 2 * pair], np.float32(0)
            if 2 * pair + 1 < num_ranks:
                right = v[row, 2 * pair + 1]
            rounded_left, rounded_right = narrow(left, _BF16), narrow(right, _BF16)
            factors[row, pair, 0] = _word(rounded_left, rounded_right)
            rest_left, rest_right = left - widen(rounded_left), right - widen(rounded_right)
            factors[row, pair, 1] = _word(narrow(rest_left, _BF16), narrow(rest_right, _BF16))
    return factors


@inlined
def _word(left: Any, right: Any) -> Any:
    return np.uint32(left) | (np.uint32(right) << np.uint32(16))


@inlined
def _paired(b: Any, pair: int, first: int) -> Any:
    """Elements of two ranks side by side, first half and second half of the columns."""
    left = load_pairs(b[2 * pair], first)
    right = load_pairs(b[min(2 * pair + 1, b.shape[0] - 1)], first)
    return paired_low(left, right), paired_high(left, right)


@inlined
def _four(rows: Any, first: int) -> Any:
    """Four rows, or where fewer are left, the last one again."""
    end = rows.shape[0] - 1
    return rows[first], rows[min(first + 1, end)], rows[min(first + 2, end)], rows[min(first + 3, end)]


@inlined
def _widened(pairs: Any) -> Any:
    return widened_low(pairs), widened_high(pairs)


@inlined
def _added(sums: Any, factors: Any, b: Any) -> Any:
    rounded, rest = repeated_pair(factors[0]), repeated_pair(factors[1])
    low = add_products(add_products(sums[0], rounded, b[0]), rest, b[0])
    return low, add_products(add_products(sums[1], rounded, b[1]), rest, b[1])


@compiled
def _expand_1(factors: Any, b: Any, y: Any) -> None:
    for first in range(0, y.shape[0], NUM_ELEMENTS):
        sums = _widened(load_pairs(y, first))
        for pair in range(factors.shape[0]):
            sums = _added(sums, factors[pair], _paired(b, pair, first))
        store_pairs(y, first, narrowed(sums[0], sums[1]))


@compiled
def _expand_4(factors: Any, b: Any, y: Any) -> None:
    y0, y1, y2, y3 = y
    for first in range(0, y0.shape[0], NUM_ELEMENTS):
        s0, s1 = _widened(load_pairs(y0, first)), _widened(load_pairs(y1, first))
        s2, s3 = _widened(load_pairs(y2, first)), _widened(load_pairs(y3, first))
        for pair in range(factors.shape[1]):
            values = _paired(b, pair, first)
            s0, s1 = _added(s0, factors[0, pair], values), _added(s1, factors[1, pair], values)
            s2, s3 = _added(s2, factors[2, pair], values), _added(s3, factors[3, pair], values)
        store_pairs(y0, first, narrowed(s0[0], s0[1]))
        store_pairs(y1, first, narrowed(s1[0], s1[1]))
        store_pairs(y2, first, narrowed(s2[0], s2[1]))
        store_pairs(y3, first, narrowed(s3[0], s3[1]))


@inlined
def _loaded(rows: Any, first: int) -> Any:
    return (
        load_pairs(rows[0], first),
        load_pairs(rows[1], first),
        load_pairs(rows[2], first),
        load_pairs(rows[3], first),
    )


@inlined
def _multiplied(s: Any, x: Any, a: Any) -> Any:
    """s[j] + x . a[j]"""
    s0, s1 = add_products(s[0], x, a[0]), add_products(s[1], x, a[1])
    return s0, s1, add_products(s[2], x, a[2]), add_products(s[3], x, a[3])


@compiled
def _dot_4_by_4(x: Any, a: Any, sums: Any) -> None:
    """sums[4 i + j] = x[i] . a[j], without what a whole number of vectors leaves."""
    s0 = s1 = s2 = s3 = no_sums(), no_sums(), no_sums(), no_sums()
    for k in range(0, x[0].shape[0] - NUM_ELEMENTS + 1, NUM_ELEMENTS):
        part = _loaded(a, k)
        s0 = _multiplied(s0, load_pairs(x[0], k), part)
        s1 = _multiplied(s1, load_pairs(x[1], k), part)
        s2 = _multiplied(s2, load_pairs(x[2], k), part)
        s3 = _multiplied(s3, load_pairs(x[3], k), part)
    store_sums(sums, 0, totals(s0 + s1 + s2 + s3))


@compiled
def _dot_1_by_4(x: Any, a: Any, sums: Any) -> None:
    """sums[j] = x . a[j], likewise."""
    s = no_sums(), no_sums(), no_sums(), no_sums()
    for k in range(0, x.shape[0] - NUM_ELEMENTS + 1, NUM_ELEMENTS):
        s = _multiplied(s, load_pairs(x, k), _loaded(a, k))
    store_sums(sums, 0, totals(s))


@compiled
def _add_rest(x: Any, a: Any, v: Any) -> None:
    """Add the products that a whole number of vectors leaves."""
    for row in range(v.shape[0]):
        for rank in range(v.shape[1]):
            for k in range(x.shape[1] // NUM_ELEMENTS * NUM_ELEMENTS, x.shape[1]):
                v[row, rank] += widen(x[row, k]) * widen(a[rank, k])
