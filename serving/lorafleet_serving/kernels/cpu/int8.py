"""Linear layers of few rows with weights of 8 bits: y = scales * (x codes.T) + bias.

What a row costs is reading the weights, so they are read once for all rows, each core a part of the outputs, and one
output behind the other: that is the order in which memory is read fastest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from lorafleet_serving.kernels.cpu.dot import dot, dot_4_by_2, widened
from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix, narrow, widen

_CODE = np.int8(0)
"""Tag of the codes."""


@compiled_parallel
def linear(
    tag: Tag, x: int, codes: int, scales: int, bias: int, y: int, shape: tuple[int, int, int], num_parts: int
) -> None:
    """Multiply rows by a weight.

    Args:
        tag: format of x, bias and y; scales are fp32.
        x: address of [num_rows, in_features].
        codes: address of [out_features, in_features], int8.
        scales: address of [out_features].
        bias: address of [out_features]; 0 adds none.
        y: address of [num_rows, out_features].
        shape: num_rows, in_features, out_features.
        num_parts: parts that the outputs are computed in at the same time.
    """
    for part in prange(num_parts):
        first, last = shape[2] * part // num_parts, shape[2] * (part + 1) // num_parts
        _linear_part(tag, x, codes, scales, bias, y, shape, first, last)


@compiled
def _linear_part(
    tag: Tag, x: int, codes: int, scales: int, bias: int, y: int, shape: tuple[int, int, int], first: int, last: int
) -> None:
    num_rows, in_features, out_features = shape
    wide = widened(matrix(x, num_rows, in_features, tag))
    weight = matrix(codes, out_features, in_features, _CODE)
    scale = matrix(scales, 1, out_features, np.float32(0))[0]
    target = matrix(y, num_rows, out_features, tag)
    # Without a bias this is an address of y, which is not read.
    offset = matrix(bias if bias else y, 1, out_features, tag)[0]
    v = np.empty((num_rows, 2), dtype=np.float32)
    for out in range(first, last, 2):
        width = min(2, last - out)
        _dots(wide, weight[out : out + width], v)
        for row in range(num_rows):
            for column in range(width):
                total = v[row, column] * scale[out + column]
                if bias:
                    total += widen(offset[out + column])
                target[row, out + column] = narrow(total, tag)


@compiled
def _dots(x: Any, weight: Any, v: Any) -> None:
    """v = x weight.T for one or two outputs."""
    row = 0
    if weight.shape[0] == 2:
        while row + 4 <= x.shape[0]:
            dot_4_by_2(x[row], x[row + 1], x[row + 2], x[row + 3], weight[0], weight[1], v[row : row + 4])
            row += 4
    for out in range(weight.shape[0]):
        for rest in range(row, x.shape[0]):
            v[rest, out] = dot(x[rest], weight[out])
