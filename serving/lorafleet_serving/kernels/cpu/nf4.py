"""Linear layers of few rows with weights of 4-bit NormalFloat, and such weights written out for many rows.

A weight is rounded to the model's format before it is multiplied by, as where adapters are trained on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from lorafleet_serving.kernels.cpu.dot import dot, widened
from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix, narrow, widen
from lorafleet_serving.kernels.nf4 import BLOCK_SIZE, LEVELS

_CODES = np.uint8(0)
"""Tag of the codes."""
_HALF = BLOCK_SIZE // 2
_LEVELS = np.array(LEVELS, dtype=np.float32)


@compiled_parallel
def linear(
    tag: Tag, x: int, codes: int, scales: int, bias: int, y: int, shape: tuple[int, int, int], num_parts: int
) -> None:
    """y = x W.T + bias.

    Args:
        tag: format of x, bias and y; scales are fp32.
        x: address of [num_rows, in_features], the latter a multiple of the block size.
        codes: address of [out_features, in_features / 2], uint8: a byte holds the code of a weight of a block's first
            half in its upper bits, and the code of the weight half a block later in its lower.
        scales: address of [out_features, in_features / BLOCK_SIZE].
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
    packed = matrix(codes, out_features, in_features // 2, _CODES)
    scale = matrix(scales, out_features, in_features // BLOCK_SIZE, np.float32(0))
    target = matrix(y, num_rows, out_features, tag)
    # Without a bias this is an address of y, which is not read.
    offset = matrix(bias if bias else y, 1, out_features, tag)[0]
    weight = np.empty(in_features, dtype=np.float32)
    for out in range(first, last):
        _decode(tag, packed[out], scale[out], weight)
        for row in range(num_rows):
            total = dot(wide[row], weight)
            if bias:
                total += widen(offset[out])
            target[row, out] = narrow(total, tag)


@compiled_parallel
def dense(tag: Tag, codes: int, scales: int, weight: int, in_features: int, out_features: int, num_parts: int) -> None:
    """Write a weight out, [out_features, in_features] at an address in the format of the tag."""
    for part in prange(num_parts):
        first, last = out_features * part // num_parts, out_features * (part + 1) // num_parts
        _dense_part(tag, codes, scales, weight, in_features, first, last)


@compiled
def _dense_part(tag: Tag, codes: int, scales: int, weight: int, in_features: int, first: int, last: int) -> None:
    packed = matrix(codes, last, in_features // 2, _CODES)
    scale = matrix(scales, last, in_features // BLOCK_SIZE, np.float32(0))
    target = matrix(weight, last, in_features, tag)
    wide = np.empty(in_features, dtype=np.float32)
    for out in range(first, last):
        _decode(tag, packed[out], scale[out], wide)
        row = target[out]
        for k in range(in_features):
            row[k] = narrow(wide[k], tag)


@compiled
def _decode(tag: Tag, codes: Any, scales: Any, weight: Any) -> None:
    for block in range(scales.shape[0]):
        scale = scales[block]
        packed = codes[block * _HALF : (block + 1) * _HALF]
        upper = weight[block * BLOCK_SIZE : block * BLOCK_SIZE + _HALF]
        lower = weight[block * BLOCK_SIZE + _HALF : (block + 1) * BLOCK_SIZE]
        for k in range(_HALF):
            upper[k] = widen(narrow(_LEVELS[packed[k] >> 4] * scale, tag))
            lower[k] = widen(narrow(_LEVELS[packed[k] & 15] * scale, tag))
