"""The gate of a feed-forward layer: x * sigmoid(z), where z is x for SiLU.

GELU's tanh approximation is of the same form, with z = sqrt(8 / pi) * (x + 0.044715 x^3) (D. Hendrycks, K. Gimpel,
"Gaussian Error Linear Units"), since (1 + tanh(z / 2)) / 2 is the sigmoid of z.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix, narrow, widen
from lorafleet_serving.kernels.cpu.exponential import exponential

_SLOPE = np.float32((8 / np.pi) ** 0.5)
_CUBIC = np.float32((8 / np.pi) ** 0.5 * 0.044715)


@compiled_parallel
def activate_mul(tag: Tag, is_gelu: bool, gate_up: int, out: int, num_rows: int, num_columns: int) -> None:
    """out = activation(gate) * up.

    Args:
        tag: format of both tensors.
        is_gelu: GELU by its tanh approximation; else SiLU.
        gate_up: address of [num_rows, 2 * num_columns], gate first.
        out: address of [num_rows, num_columns].
        num_rows: rows of both.
        num_columns: columns of `out`.
    """
    for row in prange(num_rows):
        activate_mul_row(tag, is_gelu, gate_up, out, row, num_columns)


@compiled
def activate_mul_row(tag: Tag, is_gelu: bool, gate_up: int, out: int, row: int, num_columns: int) -> None:
    """One row of it."""
    if is_gelu:
        _gelu_mul(tag, gate_up, out, row, num_columns)
    else:
        _silu_mul(tag, gate_up, out, row, num_columns)


@compiled
def _silu_mul(tag: Tag, gate_up: int, out: int, row: int, num_columns: int) -> None:
    both = matrix(gate_up, row + 1, 2 * num_columns, tag)[row]
    target = matrix(out, row + 1, num_columns, tag)[row]
    for k in range(num_columns):
        gate = widen(both[k])
        target[k] = narrow(gate / (np.float32(1) + exponential(-gate)) * widen(both[num_columns + k]), tag)


@compiled
def _gelu_mul(tag: Tag, gate_up: int, out: int, row: int, num_columns: int) -> None:
    both = matrix(gate_up, row + 1, 2 * num_columns, tag)[row]
    target = matrix(out, row + 1, num_columns, tag)[row]
    for k in range(num_columns):
        gate = widen(both[k])
        z = gate * (_SLOPE + _CUBIC * gate * gate)
        target[k] = narrow(gate / (np.float32(1) + exponential(-z)) * widen(both[num_columns + k]), tag)
