"""Linear layers of few rows with weights of 8 bits that share scales by groups of inputs.

What takes the time is reading the weights, so they are read once for all rows, each core a part of the outputs. They
lie in panels of 32 outputs, one input behind the other: that is the order in which they are read, and sums belong to
outputs, so that none has to be taken across a vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.cpu.dot import widened
from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix, narrow, prefetch, widen
from lorafleet_serving.kernels.cpu.lanes import (
    NUM_SUMS,
    add_product,
    add_sums,
    load_codes,
    load_pairs,
    no_sums,
    repeated,
    store_sums,
    widened_high,
    widened_low,
)
from lorafleet_serving.kernels.weights import INT8_GROUP_SIZE

_PANEL_OUTPUTS = 2 * NUM_SUMS
_AHEAD = 4096
"""Codes by which they are sent for before they are read: to widen them takes too long for a processor to see so far."""
_CODE = np.int8(0)
"""Tag of the codes."""
_SCALE = np.uint16(0)
"""Tag of their scales."""


def panels_of(rows: Tensor) -> Tensor:
    """Bring [out_features, n] into panels, [num_panels, n, 32]; zeros fill the last."""
    filled = F.pad(rows, (0, 0, 0, -rows.shape[0] % _PANEL_OUTPUTS))
    return filled.view(-1, _PANEL_OUTPUTS, rows.shape[1]).transpose(1, 2).contiguous()


@compiled_parallel
def linear(
    tag: Tag, x: int, codes: int, scales: int, bias: int, y: int, shape: tuple[int, int, int], num_parts: int
) -> None:
    """y = x W.T + bias

    Args:
        tag: format of x, bias and y; scales are bf16.
        x: address of [num_rows, in_features].
        codes: address of what `panels_of` gave for [out_features, in_features].
        scales: address of what it gave for [out_features, num_groups].
        bias: address of [out_features]; 0 adds none.
        y: address of [num_rows, out_features].
        shape: num_rows, in_features, out_features.
        num_parts: parts that the outputs are computed in at the same time.
    """
    for part in prange(num_parts):
        num_panels = (shape[2] + _PANEL_OUTPUTS - 1) // _PANEL_OUTPUTS
        first, last = num_panels * part // num_parts, num_panels * (part + 1) // num_parts
        _linear_part(tag, x, codes, scales, bias, y, shape, first, last)


@compiled
def _linear_part(
    tag: Tag, x: int, codes: int, scales: int, bias: int, y: int, shape: tuple[int, int, int], first: int, last: int
) -> None:
    num_rows, in_features, out_features = shape
    num_groups = (in_features + INT8_GROUP_SIZE - 1) // INT8_GROUP_SIZE
    wide = widened(matrix(x, num_rows, in_features, tag))
    weight = matrix(codes, last, in_features * _PANEL_OUTPUTS, _CODE)
    scale = matrix(scales, last, num_groups * _PANEL_OUTPUTS, _SCALE)
    target = matrix(y, num_rows, out_features, tag)
    # Without a bias this is an address of y, which is not read.
    offset = matrix(bias if bias else y, 1, out_features, tag)[0]
    totals = np.empty(_PANEL_OUTPUTS, dtype=np.float32)
    for panel in range(first, last):
        start = panel * _PANEL_OUTPUTS
        for row in range(num_rows):
            _panel(wide[row], weight[panel], scale[panel], totals)
            for k in range(min(_PANEL_OUTPUTS, out_features - start)):
                total = totals[k]
                if bias:
                    total += widen(offset[start + k])
                target[row, start + k] = narrow(total, tag)


@compiled
def _panel(x: Any, codes: Any, scales: Any, totals: Any) -> None:
    """totals = x W.T, group by group; even and odd inputs apart, so that no sum waits for the one before."""
    low = high = no_sums()
    for first in range(0, x.shape[0], INT8_GROUP_SIZE):
        last = min(first + INT8_GROUP_SIZE, x.shape[0])
        low_even = high_even = low_odd = high_odd = no_sums()
        for k in range(first, last - 1, 2):
            even, odd, at = repeated(x[k]), repeated(x[k + 1]), k * _PANEL_OUTPUTS
            prefetch(codes, at + _AHEAD)
            low_even = add_product(low_even, even, load_codes(codes, at))
            high_even = add_product(high_even, even, load_codes(codes, at + NUM_SUMS))
            low_odd = add_product(low_odd, odd, load_codes(codes, at + 2 * NUM_SUMS))
            high_odd = add_product(high_odd, odd, load_codes(codes, at + 3 * NUM_SUMS))
        if (last - first) % 2:
            value, at = repeated(x[last - 1]), (last - 1) * _PANEL_OUTPUTS
            low_even = add_product(low_even, value, load_codes(codes, at))
            high_even = add_product(high_even, value, load_codes(codes, at + NUM_SUMS))
        group = load_pairs(scales, first // INT8_GROUP_SIZE * _PANEL_OUTPUTS)
        low = add_product(low, widened_low(group), add_sums(low_even, low_odd))
        high = add_product(high, widened_high(group), add_sums(high_even, high_odd))
    store_sums(totals, 0, low)
    store_sums(totals, NUM_SUMS, high)
