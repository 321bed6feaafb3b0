"""Shrink and expand of a LoRA in bf16 on a processor that multiplies pairs of bf16.

An adapter's weights at a site lie in the order in which they are read, as `packed_lora.LoraPanels` puts them: a step
with many adapters takes as long as reading them takes, and a processor sees far ahead in what lies in one piece alone.
Every sum is taken in the same order whatever rows and ranks are computed beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from lorafleet_serving.kernels.cpu.dot import add_four_products
from lorafleet_serving.kernels.cpu.element import compiled, inlined, narrow, prefetch, widen
from lorafleet_serving.kernels.cpu.lanes import (
    NUM_ELEMENTS,
    NUM_SUMS,
    add_product,
    add_products,
    load_pairs,
    load_sums,
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

RANK_GROUP = 4
"""Ranks of A that lie side by side, since they are multiplied by at the same time."""
_AHEAD = 16 * NUM_ELEMENTS
"""Elements between what is computed with and what is sent for."""
_BF16 = np.uint16(0)


@compiled
def shrink(x: Any, a: Any, v: Any) -> None:
    """v = x A.T, by blocks of rows and ranks that fit the registers.

    Args:
        x: [num_rows, in_features].
        a: [num_ranks * in_features], A in panels.
        v: [num_rows, num_ranks] in fp32.
    """
    num_rows, num_ranks = v.shape
    whole = x.shape[1] // NUM_ELEMENTS * NUM_ELEMENTS
    sums = np.empty(NUM_SUMS, dtype=np.float32)
    for rank in range(0, num_ranks, RANK_GROUP):
        num_kept = min(RANK_GROUP, num_ranks - rank)
        group = a[rank * whole :]
        for row in range(0, num_rows - 3, 4):
            _dot_4_by_4(_four(x, row), group, num_kept, whole, sums)
            for i in range(4):
                v[row + i, rank : rank + num_kept] = sums[4 * i : 4 * i + num_kept]
        for row in range(num_rows // 4 * 4, num_rows):
            _dot_1_by_4(x[row], group, num_kept, whole, sums)
            v[row, rank : rank + num_kept] = sums[:num_kept]
    if whole < x.shape[1]:
        _add_rest(x, a[num_ranks * whole :], whole, v)


@compiled
def expand(v: Any, b: Any, y: Any, scales: Any) -> None:
    """y += v B.T, rescaled where it is so, in fp32 and rounded once.

    Args:
        v: [num_rows, num_ranks] in fp32.
        b: [num_ranks * num_outs], B in panels; `num_outs` a multiple of `NUM_ELEMENTS`.
        y: [num_rows, num_outs], added to in place.
        scales: gain and offset, [num_outs] in fp32, of which the sum becomes gain * y + offset; empty rescales nothing.
    """
    factors = _paired_factors(v)
    num_ranks = v.shape[1]
    for row in range(0, y.shape[0] - 3, 4):
        _expand_4(factors[row : row + 4], num_ranks, b, _four(y, row), scales)
    for row in range(y.shape[0] // 4 * 4, y.shape[0]):
        _expand_1(factors[row], num_ranks, b, y[row], scales)


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
def _four(rows: Any, first: int) -> Any:
    return rows[first], rows[first + 1], rows[first + 2], rows[first + 3]


@inlined
def _widened(pairs: Any) -> Any:
    return widened_low(pairs), widened_high(pairs)


@inlined
def _paired(b: Any, at: int) -> Any:
    """Elements of two ranks side by side, of 32 outputs."""
    prefetch(b, at + _AHEAD)
    prefetch(b, at + _AHEAD + NUM_ELEMENTS)
    return load_pairs(b, at), load_pairs(b, at + NUM_ELEMENTS)


@inlined
def _unpaired(b: Any, at: int) -> Any:
    """The same where a rank has no neighbour: it stands beside itself."""
    values = load_pairs(b, at)
    return paired_low(values, values), paired_high(values, values)


@inlined
def _added(sums: Any, factors: Any, b: Any) -> Any:
    rounded, rest = repeated_pair(factors[0]), repeated_pair(factors[1])
    low = add_products(add_products(sums[0], rounded, b[0]), rest, b[0])
    return low, add_products(add_products(sums[1], rounded, b[1]), rest, b[1])


@inlined
def _store(y: Any, first: int, sums: Any, scales: Any) -> None:
    low, high = _rescaled(sums, first, scales)
    store_pairs(y, first, narrowed(low, high))


def _rescaled(sums: Any, first: int, scales: Any) -> Any:
    raise NotImplementedError(scales)  # Compiled code takes what `_rescaled_of` chooses in its place.


@overload(_rescaled, inline="always", strict=False)
def _rescaled_of(sums: Any, first: Any, scales: Any) -> Any:
    """Chosen by type: a branch among the sums would take a quarter of the time."""
    return _gained if len(scales) else lambda sums, first, scales: sums


def _gained(sums: Any, first: int, scales: Any) -> Any:
    gain, offset = scales
    low = add_product(load_sums(offset, first), sums[0], load_sums(gain, first))
    return low, add_product(load_sums(offset, first + NUM_SUMS), sums[1], load_sums(gain, first + NUM_SUMS))


@compiled
def _expand_1(factors: Any, num_ranks: int, b: Any, y: Any, scales: Any) -> None:
    at = 0
    for first in range(0, y.shape[0], NUM_ELEMENTS):
        sums = _widened(load_pairs(y, first))
        for pair in range(num_ranks // 2):
            sums = _added(sums, factors[pair], _paired(b, at))
            at += 2 * NUM_ELEMENTS
        if num_ranks % 2:
            sums = _added(sums, factors[num_ranks // 2], _unpaired(b, at))
            at += NUM_ELEMENTS
        _store(y, first, sums, scales)


@inlined
def _added_4(sums: Any, factors: Any, pair: int, b: Any) -> Any:
    first, second = _added(sums[0], factors[0, pair], b), _added(sums[1], factors[1, pair], b)
    return first, second, _added(sums[2], factors[2, pair], b), _added(sums[3], factors[3, pair], b)


@compiled
def _expand_4(factors: Any, num_ranks: int, b: Any, y: Any, scales: Any) -> None:
    at = 0
    for first in range(0, y[0].shape[0], NUM_ELEMENTS):
        s0, s1 = _widened(load_pairs(y[0], first)), _widened(load_pairs(y[1], first))
        sums = s0, s1, _widened(load_pairs(y[2], first)), _widened(load_pairs(y[3], first))
        for pair in range(num_ranks // 2):
            sums = _added_4(sums, factors, pair, _paired(b, at))
            at += 2 * NUM_ELEMENTS
        if num_ranks % 2:
            sums = _added_4(sums, factors, num_ranks // 2, _unpaired(b, at))
            at += NUM_ELEMENTS
        _store(y[0], first, sums[0], scales)
        _store(y[1], first, sums[1], scales)
        _store(y[2], first, sums[2], scales)
        _store(y[3], first, sums[3], scales)


@inlined
def _loaded(group: Any, at: int, num_kept: int) -> Any:
    """Four ranks; where fewer are left, the last one again."""
    second, third = min(1, num_kept - 1) * NUM_ELEMENTS, min(2, num_kept - 1) * NUM_ELEMENTS
    fourth = (num_kept - 1) * NUM_ELEMENTS
    ahead = at + _AHEAD
    prefetch(group, ahead)
    prefetch(group, ahead + second)
    prefetch(group, ahead + third)
    prefetch(group, ahead + fourth)
    a0, a1 = load_pairs(group, at), load_pairs(group, at + second)
    return a0, a1, load_pairs(group, at + third), load_pairs(group, at + fourth)


@compiled
def _dot_4_by_4(x: Any, group: Any, num_kept: int, num_columns: int, sums: Any) -> None:
    """sums[4 i + j] = x[i] . a[j]"""
    s0 = s1 = s2 = s3 = no_sums(), no_sums(), no_sums(), no_sums()
    for k in range(0, num_columns, NUM_ELEMENTS):
        part = _loaded(group, k * num_kept, num_kept)
        s0 = add_four_products(s0, load_pairs(x[0], k), part)
        s1 = add_four_products(s1, load_pairs(x[1], k), part)
        s2 = add_four_products(s2, load_pairs(x[2], k), part)
        s3 = add_four_products(s3, load_pairs(x[3], k), part)
    store_sums(sums, 0, totals(s0 + s1 + s2 + s3))


@compiled
def _dot_1_by_4(x: Any, group: Any, num_kept: int, num_columns: int, sums: Any) -> None:
    """sums[j] = x . a[j]"""
    s = no_sums(), no_sums(), no_sums(), no_sums()
    for k in range(0, num_columns, NUM_ELEMENTS):
        s = add_four_products(s, load_pairs(x, k), _loaded(group, k * num_kept, num_kept))
    store_sums(sums, 0, totals(s))


@compiled
def _add_rest(x: Any, rest: Any, whole: int, v: Any) -> None:
    """Add the products of the columns that a whole number of vectors leaves; they lie behind the panels, by rank."""
    num_columns = x.shape[1] - whole
    for row in range(v.shape[0]):
        for rank in range(v.shape[1]):
            for k in range(num_columns):
                v[row, rank] += widen(x[row, whole + k]) * widen(rest[rank * num_columns + k])
