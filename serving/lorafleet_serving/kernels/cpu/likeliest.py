"""The highest logit of each row, and whether the row is finite, in one pass.

Compared are the bits of the numbers, arranged so that they order as the numbers do, NaN beyond either infinity: whole
numbers are compared many at a time, where a NaN among fractions would have to be watched for one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix
from lorafleet_serving.kernels.lora_table import Ints

NOT_FINITE = -1
"""Stands for the place in a row that is not finite."""
_BLOCK = 1024
"""Logits whose highest is found before its place is: it is looked for in one block alone."""


@compiled_parallel
def likeliest(tag: Tag, logits: int, num_columns: int, places: Ints) -> None:
    """Find the first of the highest logits of each row.

    Args:
        tag: format of the logits.
        logits: address of [num_rows, num_columns].
        num_columns: columns.
        places: [num_rows], written: a column of each row, or `NOT_FINITE`.
    """
    for row in prange(places.shape[0]):
        places[row] = _find(tag, logits, row, num_columns)


def order(element: Any) -> Any:
    """An element as a whole number: the higher the element, the higher its number."""
    raise NotImplementedError(element)  # Compiled code takes `_order` in its place.


@overload(order, inline="always", strict=False)
def _order(element: Any) -> Any:
    # Negative numbers are stored as sign and size: the larger the size, the lower they are.
    if element == types.uint16:
        return lambda element: np.int16(np.int16(element) ^ ((np.int16(element) >> 15) & np.int16(0x7FFF)))
    return lambda element: _order_bits(np.float32(element).view(np.int32))


@compiled
def _order_bits(bits: Any) -> Any:
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


def infinity(tag: Any) -> Any:
    """The number of positive infinity; that of the negative one is its complement."""
    raise NotImplementedError(tag)  # Compiled code takes `_infinity` in its place.


@overload(infinity, inline="always", strict=False)
def _infinity(tag: Any) -> Any:
    if tag == types.uint16:
        return lambda tag: np.int16(0x7F80)
    return lambda tag: np.int32(0x7F800000)


@compiled
def _find(tag: Tag, logits: int, row: int, num_columns: int) -> int:
    values = matrix(logits, row + 1, num_columns, tag)[row]
    highest = lowest = order(values[0])
    where = 0
    for start in range(0, num_columns, _BLOCK):
        block = values[start : start + _BLOCK]
        block_highest = block_lowest = order(block[0])
        for column in range(block.shape[0]):
            number = order(block[column])
            block_highest = max(block_highest, number)
            block_lowest = min(block_lowest, number)
        lowest = min(lowest, block_lowest)
        if block_highest > highest:
            highest, where = block_highest, start
    if highest >= infinity(tag) or lowest <= ~infinity(tag):
        return NOT_FINITE
    while order(values[where]) != highest:
        where += 1
    return where
