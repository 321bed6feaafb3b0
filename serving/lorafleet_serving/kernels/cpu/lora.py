"""LoRA of a step's rows in one call per site, whatever the number of adapters: y += (x A.T) B.T, exact ranks.

Adapters stay where they lie: a table holds their addresses. A unit of work is a few rows of one adapter, so that A
and B are read once for all of them, and no row pays for another's adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from lorafleet_serving.kernels import lora_table
from lorafleet_serving.kernels.cpu import lora_pairs
from lorafleet_serving.kernels.cpu.dot import dot, dot_1_by_4, dot_4_by_2, widened
from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, fetch, matrix, narrow, widen
from lorafleet_serving.kernels.cpu.lanes import HAS_PAIR_PRODUCTS, NUM_ELEMENTS
from lorafleet_serving.kernels.lora_table import Ints

LONG_RUN = 64
"""Rows of one adapter that are split into long units."""
_UNIT_ROWS, _LONG_UNIT_ROWS = 8, 32
"""Rows of a unit: enough to share what is read, few enough to spread one adapter's rows over the cores."""


def units_of(segments: Sequence[tuple[int, int]]) -> Ints:
    """Split runs of rows, one run per adapter, into units: [num_units, 3] first row, last row, number of the run."""
    units = []
    for number, (start, end) in enumerate(segments):
        num_rows = _LONG_UNIT_ROWS if end - start >= LONG_RUN else _UNIT_ROWS
        units += [(first, min(first + num_rows, end), number) for first in range(start, end, num_rows)]
    return np.array(units, dtype=np.int64).reshape(-1, 3)


@compiled_parallel
def add_lora(tag: Tag, x: int, y: int, in_features: int, out_features: int, units: Ints, table: Ints) -> None:
    """Add each row's adapter at one site.

    Args:
        tag: format of all tensors.
        x: address of [num_tokens, in_features].
        y: address of [num_tokens, out_features], added to in place.
        in_features: columns of x.
        out_features: columns of y.
        units: what `units_of` gave.
        table: [num_runs, ROW_WIDTH] rows of `address_table` at this site, by number of the run.
    """
    for i in prange(units.shape[0]):
        _add_unit(tag, x, y, in_features, out_features, units[i], table[units[i, 2]])


@compiled
def _add_unit(tag: Tag, x: int, y: int, in_features: int, out_features: int, unit: Any, entry: Any) -> None:
    if entry[lora_table.NUM_SLICES] == 0:
        return
    first, last, num_ranks = unit[0], unit[1], entry[lora_table.NUM_RANKS]
    _fetch(entry, in_features, tag)
    v = np.empty((last - first, num_ranks), dtype=np.float32)
    a = matrix(entry[lora_table.A], num_ranks, in_features, tag)
    _shrink(tag, matrix(x, last, in_features, tag)[first:last], a, v)
    target = matrix(y, last, out_features, tag)[first:last]
    for part in range(entry[lora_table.NUM_SLICES]):
        _expand(tag, v, entry[lora_table.SLICES + part * lora_table.SLICE_WIDTH :], target)


@compiled
def _fetch(entry: Any, in_features: int, tag: Tag) -> None:
    """Send for an adapter's weights at a site, all at once: to wait for one part after the other would take longer."""
    fetch(matrix(entry[lora_table.A], 1, entry[lora_table.NUM_RANKS] * in_features, tag)[0])
    for number in range(entry[lora_table.NUM_SLICES]):
        part = entry[lora_table.SLICES + number * lora_table.SLICE_WIDTH :]
        num_ranks = part[lora_table.LAST_RANK] - part[lora_table.FIRST_RANK]
        num_outs = part[lora_table.LAST_OUT] - part[lora_table.FIRST_OUT]
        fetch(matrix(part[lora_table.B], 1, num_ranks * num_outs, tag)[0])


def _shrink(tag: Tag, x: Any, a: Any, v: Any) -> None:
    """v = x A.T in fp32."""
    raise NotImplementedError(tag)  # Compiled code takes what `_shrink_of` chooses in its place.


@overload(_shrink, strict=False)
def _shrink_of(tag: Any, x: Any, a: Any, v: Any) -> Any:
    if tag == types.uint16 and HAS_PAIR_PRODUCTS:
        return lambda tag, x, a, v: lora_pairs.shrink(x, a, v)
    return lambda tag, x, a, v: _shrink_widened(widened(x), a, v)


def _expand(tag: Tag, v: Any, part: Any, y: Any) -> None:
    """Add one merged module's outputs: y[:, outs] += v[:, ranks] B.T, rescaled, all in fp32 and rounded once."""
    raise NotImplementedError(tag)  # Compiled code takes what `_expand_of` chooses in its place.


@overload(_expand, strict=False)
def _expand_of(tag: Any, v: Any, part: Any, y: Any) -> Any:
    if tag == types.uint16 and HAS_PAIR_PRODUCTS:
        return lambda tag, v, part, y: _expand_by_pairs(tag, v, part, y)
    return lambda tag, v, part, y: _expand_widened(tag, v, part, y)


@compiled
def _expand_by_pairs(tag: Tag, v: Any, part: Any, y: Any) -> None:
    first, last = part[lora_table.FIRST_OUT], part[lora_table.LAST_OUT]
    first_rank, last_rank = part[lora_table.FIRST_RANK], part[lora_table.LAST_RANK]
    if part[lora_table.GAIN] == 0 and (last - first) % NUM_ELEMENTS == 0:
        b = matrix(part[lora_table.B], last_rank - first_rank, last - first, tag)
        lora_pairs.expand(v[:, first_rank:last_rank], b, y[:, first:last])
    else:
        _expand_widened(tag, v, part, y)


@compiled
def _shrink_widened(x: Any, a: Any, v: Any) -> None:
    """v = x A.T of rows in fp32, by blocks of rows and ranks that fit the registers."""
    num_rows, num_ranks = v.shape
    row = 0
    while row + 4 <= num_rows:
        rank = 0
        while rank + 2 <= num_ranks:
            dot_4_by_2(x[row], x[row + 1], x[row + 2], x[row + 3], a[rank], a[rank + 1], v[row : row + 4, rank:])
            rank += 2
        if rank < num_ranks:
            for last in range(row, row + 4):
                v[last, rank] = dot(x[last], a[rank])
        row += 4
    for last in range(row, num_rows):
        rank = 0
        while rank + 4 <= num_ranks:
            dot_1_by_4(x[last], a[rank], a[rank + 1], a[rank + 2], a[rank + 3], v[last, rank:])
            rank += 4
        for rest in range(rank, num_ranks):
            v[last, rest] = dot(x[last], a[rest])


@compiled
def _expand_widened(tag: Tag, v: Any, part: Any, y: Any) -> None:
    first, last = part[lora_table.FIRST_OUT], part[lora_table.LAST_OUT]
    num_ranks = part[lora_table.LAST_RANK] - part[lora_table.FIRST_RANK]
    b = matrix(part[lora_table.B], num_ranks, last - first, tag)
    total = np.empty(last - first, dtype=np.float32)
    is_rescaled = part[lora_table.GAIN] != 0
    # Without rescaling these are addresses of B, which are not read.
    gain = matrix(part[lora_table.GAIN] if is_rescaled else part[lora_table.B], 1, last - first, np.float32(0))[0]
    offset = matrix(part[lora_table.OFFSET] if is_rescaled else part[lora_table.B], 1, last - first, np.float32(0))[0]
    for row in range(v.shape[0]):
        out = y[row, first:last]
        for c in range(total.shape[0]):
            total[c] = widen(out[c])
        factors = v[row, part[lora_table.FIRST_RANK] : part[lora_table.LAST_RANK]]
        rank = 0
        while rank + 4 <= num_ranks:
            _accumulate_4(total, factors[rank : rank + 4], b[rank], b[rank + 1], b[rank + 2], b[rank + 3])
            rank += 4
        for rest in range(rank, num_ranks):
            factor, ranked = factors[rest], b[rest]
            for c in range(total.shape[0]):
                total[c] += factor * widen(ranked[c])
        if is_rescaled:
            for c in range(total.shape[0]):
                total[c] = gain[c] * total[c] + offset[c]
        for c in range(total.shape[0]):
            out[c] = narrow(total[c], tag)


@compiled
def _accumulate_4(total: Any, factors: Any, b0: Any, b1: Any, b2: Any, b3: Any) -> None:
    f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
    for c in range(total.shape[0]):
        total[c] += f0 * widen(b0[c]) + f1 * widen(b1[c]) + f2 * widen(b2[c]) + f3 * widen(b3[c])
