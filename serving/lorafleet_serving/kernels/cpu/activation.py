"""The gate of a feed-forward layer."""

from __future__ import annotations

import numpy as np
from numba import prange

from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix, narrow, widen
from lorafleet_serving.kernels.cpu.exponential import exponential


@compiled_parallel
def silu_mul(tag: Tag, gate_up: int, out: int, num_rows: int, num_columns: int) -> None:
    """out = silu(gate) * up.

    Args:
        tag: format of both tensors.
        gate_up: address of [num_rows, 2 * num_columns], gate first.
        out: address of [num_rows, num_columns].
        num_rows: rows of both.
        num_columns: columns of `out`.
    """
    for row in prange(num_rows):
        _silu_mul(tag, gate_up, out, row, num_columns)


@compiled
def _silu_mul(tag: Tag, gate_up: int, out: int, row: int, num_columns: int) -> None:
    both = matrix(gate_up, row + 1, 2 * num_columns, tag)[row]
    target = matrix(out, row + 1, num_columns, tag)[row]
    for k in range(num_columns):
        gate = widen(both[k])
        target[k] = narrow(gate / (np.float32(1) + exponential(-gate)) * widen(both[num_columns + k]), tag)
