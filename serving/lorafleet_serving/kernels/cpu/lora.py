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
from lorafleet_serving.kernels.cpu import lora_panels
from lorafleet_serving.kernels.cpu.dot import dot, dot_1_by_4, dot_4_by_2, widened
from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix, narrow, widen
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
    v = np.empty((last - first, num_ranks), dtype=np.float32)
    _shrink(tag, matrix(x, last, in_features, tag)[first:last], entry[lora_table.A], v)
    target = matrix(y, last, out_features, tag)[first:last]
    for part in range(entry[lora_table.NUM_SLICES]):
        _expand_slice(tag, v, entry[lora_table.SLICES + part * lora_table.SLICE_WIDTH :], target)


def _shrink(tag: Tag, x: Any, a: int, v: Any) -> None:
    """v = x A.T in fp32."""
    raise NotImplementedError(tag)  # Compiled code takes what `_shrink_of` chooses in its place.


@overload(_shrink, strict=False)
def _shrink_of(tag: Any, x: Any, a: Any, v: Any) -> Any:
    if tag == types.uint16 and HAS_PAIR_PRODUCTS:
        return lambda tag, x, a, v: lora_panels.shrink(x, matrix(a, 1, v.shape[1] * x.shape[1], tag)[0], v)
    return lambda tag, x, a, v: _shrink_widened(widened(x), matrix(a, v.shape[1], x.shape[1], tag), v)


@compiled
def _expand_slice(tag: Tag, v: Any, part: Any, y: Any) -> None:
    """Add one merged module's outputs."""
    first, last = part[lora_table.FIRST_OUT], part[lora_table.LAST_OUT]
    ranked = v[:, part[lora_table.FIRST_RANK] : part[lora_table.LAST_RANK]]
    if part[lora_table.GAIN]:
        gain = matrix(part[lora_table.GAIN], 1, last - first, np.float32(0))[0]
        offset = matrix(part[lora_table.OFFSET], 1, last - first, np.float32(0))[0]
        _expand(tag, ranked, part[lora_table.B], y[:, first:last], (gain, offset))
    else:
        _expand(tag, ranked, part[lora_table.B], y[:, first:last], ())


def _expand(tag: Tag, v: Any, b: int, y: Any, scales: Any) -> None:
    """y += v B.T, rescaled where there are scales, all in fp32 and rounded once."""
    raise NotImplementedError(tag)  # Compiled code takes what `_expand_of` chooses in its place.


@overload(_expand, strict=False)
def _expand_of(tag: Any, v: Any, b: Any, y: Any, scales: Any) -> Any:
    if tag == types.uint16 and HAS_PAIR_PRODUCTS:
        return lambda tag, v, b, y, scales: _expand_panels(tag, v, b, y, scales)
    return lambda tag, v, b, y, scales: _expand_widened(tag, v, matrix(b, v.shape[1], y.shape[1], tag), y, 0, scales)


@compiled
def _expand_panels(tag: Tag, v: Any, b: int, y: Any, scales: Any) -> None:
    num_ranks, whole = v.shape[1], y.shape[1] // NUM_ELEMENTS * NUM_ELEMENTS
    num_elements = num_ranks * whole
    lora_panels.expand(v, matrix(b, 1, num_elements, tag)[0], y[:, :whole], scales)
    if whole < y.shape[1]:
        # The rest lies behind the panels, rank by rank.
        rest = matrix(b + num_elements * y.itemsize, num_ranks, y.shape[1] - whole, tag)
        _expand_widened(tag, v, rest, y[:, whole:], whole, scales)


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
def _expand_widened(tag: Tag, v: Any, b: Any, y: Any, first: int, scales: Any) -> None:
    """The scales are those of all outputs, of which y begins with the first."""
    num_ranks = v.shape[1]
    total = np.empty(y.shape[1], dtype=np.float32)
    for row in range(v.shape[0]):
        for c in range(total.shape[0]):
            total[c] = widen(y[row, c])
        rank = 0
        while rank + 4 <= num_ranks:
            _accumulate_4(total, v[row, rank : rank + 4], b[rank], b[rank + 1], b[rank + 2], b[rank + 3])
            rank += 4
        for rest in range(rank, num_ranks):
            factor, ranked = v[row, rest], b[rest]
            for c in range(total.shape[0]):
                total[c] += factor * widen(ranked[c])
        _rescale(total, first, scales)
        for c in range(total.shape[0]):
            y[row, c] = narrow(total[c], tag)


@compiled
def _accumulate_4(total: Any, factors: Any, b0: Any, b1: Any, b2: Any, b3: Any) -> None:
    f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
    for c in range(total.shape[0]):
        total[c] += f0 * widen(b0[c]) + f1 * widen(b1[c]) + f2 * widen(b2[c]) + f3 * widen(b3[c])


def _rescale(total: Any, first: int, scales: Any) -> None:
    raise NotImplementedError(scales)  # Compiled code takes what `_rescale_of` chooses in its place.


@overload(_rescale, strict=False)
def _rescale_of(total: Any, first: Any, scales: Any) -> Any:
    return _rescale_by if len(scales) else lambda total, first, scales: None


def _rescale_by(total: Any, first: int, scales: Any) -> None:
    gain, offset = scales
    for c in range(total.shape[0]):
        total[c] = gain[first + c] * total[c] + offset[first + c]
