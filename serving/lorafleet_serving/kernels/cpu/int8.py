"""Linear layers of few rows with weights of 8 bits: y = scales * ((x * input_scales) codes.T) + bias.

What takes the time is reading the weights, so they are read once for all rows, each core a part of the outputs, and
one output behind the other: that is the order in which memory is read fastest.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from lorafleet_serving.kernels.cpu.dot import dot, widened
from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix, narrow, widen

_CODE = np.int8(0)
"""Tag of the codes."""


@compiled_parallel
def linear(
    tag: Tag,
    x: int,
    codes: int,
    scales: int,
    input_scales: int,
    bias: int,
    y: int,
    shape: tuple[int, int, int],
    num_parts: int,
) -> None:
    """Multiply rows by a weight.

    Args:
        tag: format of x, bias and y; scales are fp32.
        x: address of [num_rows, in_features].
        codes: address of [out_features, in_features], int8.
        scales: address of [out_features].
        input_scales: address of [in_features].
        bias: address of [out_features]; 0 adds none.
        y: address of [num_rows, out_features].
        shape: num_rows, in_features, out_features.
        num_parts: parts that the outputs are computed in at the same time.
    """
    for part in prange(num_parts):
        first, last = shape[2] * part // num_parts, shape[2] * (part + 1) // num_parts
        _linear_part(tag, x, codes, scales, input_scales, bias, y, shape, first, last)


@compiled
def _linear_part(
    tag: Tag,
    x: int,
    codes: int,
    scales: int,
    input_scales: int,
    bias: int,
    y: int,
    shape: tuple[int, int, int],
    first: int,
    last: int,
) -> None:
    num_rows, in_features, out_features = shape
    wide = widened(matrix(x, num_rows, in_features, tag))
    input_scale = matrix(input_scales, 1, in_features, np.float32(0))[0]
    for row in range(num_rows):
        for k in range(in_features):
            wide[row, k] *= input_scale[k]
    weight = matrix(codes, out_features, in_features, _CODE)
    scale = matrix(scales, 1, out_features, np.float32(0))[0]
    target = matrix(y, num_rows, out_features, tag)
    # Without a bias this is an address of y, which is not read.
    offset = matrix(bias if bias else y, 1, out_features, tag)[0]
    for out in range(first, last):
        for row in range(num_rows):
            total = dot(wide[row], weight[out]) * scale[out]
            if bias:
                total += widen(offset[out])
            target[row, out] = narrow(total, tag)
