"""Products of few rows with a bf16 weight as oneDNN packs it: panels of 64 outputs, in each the inputs by pairs.

oneDNN takes few rows for many, and reads the weight at half the speed that memory has. Here it is read once, in order,
each core a part of the outputs.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix
from lorafleet_serving.kernels.cpu.lanes import (
    HAS_PAIR_PRODUCTS,
    NUM_ELEMENTS,
    add_products,
    add_sums,
    load_pairs,
    narrowed,
    no_sums,
    repeated_pair,
    store_pairs,
    widened_high,
    widened_low,
)

PANEL_OUTPUTS = 2 * NUM_ELEMENTS
"""Outputs of a panel, four vectors of pairs wide."""

_PAIR = np.uint32(0)
"""Tag of two elements that are read as one word."""


def address_of(packed: Tensor, weight: Tensor) -> int:
    """Address of a weight that oneDNN has packed; 0 where it lies otherwise than in panels, or cannot be read here.

    Its layout is oneDNN's own affair: what is found in the first and in the last panel decides.
    """
    out_features, in_features = weight.shape
    size = PANEL_OUTPUTS * in_features
    if not HAS_PAIR_PRODUCTS or out_features % PANEL_OUTPUTS or in_features % 2:
        return 0
    if torch.ops.mkldnn._nbytes(packed) != weight.nbytes:
        return 0
    address: int = torch.ops.mkldnn.data_ptr(packed)
    lying = np.ctypeslib.as_array((ctypes.c_int16 * weight.numel()).from_address(address))
    rows = weight.view(torch.int16)
    ends = ((lying[:size], rows[:PANEL_OUTPUTS]), (lying[-size:], rows[-PANEL_OUTPUTS:]))
    expected = (part.reshape(PANEL_OUTPUTS, -1, 2).transpose(0, 1).flatten() for _, part in ends)
    is_ours = all(np.array_equal(found, wanted) for (found, _), wanted in zip(ends, expected, strict=True))
    return address if is_ours else 0


@compiled_parallel
def linear(tag: Tag, x: int, panels: int, bias: int, y: int, shape: tuple[int, int, int], num_parts: int) -> None:
    """y = x W.T + bias

    Args:
        tag: that of bf16.
        x: address of [num_rows, in_features].
        panels: address of [out_features / 64, in_features / 2, 64, 2].
        bias: address of [out_features]; 0 adds none.
        y: address of [num_rows, out_features].
        shape: num_rows, in_features, out_features; the last a multiple of 64, the second of 2.
        num_parts: parts that the outputs are computed in at the same time.
    """
    for part in prange(num_parts):
        _linear_part(tag, x, panels, bias, y, shape, part, num_parts)


@compiled
def _linear_part(
    tag: Tag, x: int, panels: int, bias: int, y: int, shape: tuple[int, int, int], part: int, num_parts: int
) -> None:
    num_rows, in_features, out_features = shape
    num_pairs = in_features // 2
    # By half panels, so that the parts are of one size.
    num_halves = out_features // NUM_ELEMENTS
    first, last = num_halves * part // num_parts, num_halves * (part + 1) // num_parts
    if first == last:
        return
    inputs = matrix(x, num_rows, num_pairs, _PAIR)
    weight = matrix(panels, out_features // PANEL_OUTPUTS, num_pairs * 2 * PANEL_OUTPUTS, tag)
    outputs = matrix(y, num_rows, out_features, tag)
    offsets = matrix(bias if bias else y, 1, out_features, tag)[0]
    if first % 2:
        for row in range(num_rows):
            _half_panel(inputs[row], weight[first // 2], 2, bias, offsets, outputs[row], first * NUM_ELEMENTS)
    for panel in range((first + 1) // 2, last // 2):
        for row in range(num_rows):
            _panel(inputs[row], weight[panel], bias, offsets, outputs[row], panel * PANEL_OUTPUTS)
    if last % 2:
        for row in range(num_rows):
            _half_panel(inputs[row], weight[last // 2], 0, bias, offsets, outputs[row], (last - 1) * NUM_ELEMENTS)


@compiled
def _panel(x: Any, weight: Any, bias: int, offsets: Any, y: Any, first: int) -> None:
    s0 = s1 = s2 = s3 = no_sums()
    for pair in range(x.shape[0]):
        value, at = repeated_pair(x[pair]), pair * 2 * PANEL_OUTPUTS
        s0 = add_products(s0, value, load_pairs(weight, at))
        s1 = add_products(s1, value, load_pairs(weight, at + NUM_ELEMENTS))
        s2 = add_products(s2, value, load_pairs(weight, at + 2 * NUM_ELEMENTS))
        s3 = add_products(s3, value, load_pairs(weight, at + 3 * NUM_ELEMENTS))
    _store(s0, s1, bias, offsets, y, first)
    _store(s2, s3, bias, offsets, y, first + NUM_ELEMENTS)


@compiled
def _half_panel(x: Any, weight: Any, vector: int, bias: int, offsets: Any, y: Any, first: int) -> None:
    s0 = s1 = no_sums()
    for pair in range(x.shape[0]):
        value, at = repeated_pair(x[pair]), pair * 2 * PANEL_OUTPUTS + vector * NUM_ELEMENTS
        s0 = add_products(s0, value, load_pairs(weight, at))
        s1 = add_products(s1, value, load_pairs(weight, at + NUM_ELEMENTS))
    _store(s0, s1, bias, offsets, y, first)


@compiled
def _store(low: Any, high: Any, bias: int, offsets: Any, y: Any, first: int) -> None:
    if bias:
        offset = load_pairs(offsets, first)
        low, high = add_sums(low, widened_low(offset)), add_sums(high, widened_high(offset))
    store_pairs(y, first, narrowed(low, high))
