"""Root-mean-square normalization, with the residual added on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix, narrow, widen


@compiled_parallel
def rms_norm(tag: Tag, x: int, weight: int, out: int, num_rows: int, num_columns: int, eps: float) -> None:
    """out = weight * x / rms(x), row by row.

    Args:
        tag: format of x and out; weight is fp32, as are the statistics.
        x: address of [num_rows, num_columns].
        weight: address of [num_columns].
        out: address of [num_rows, num_columns].
        num_rows: rows of x and out.
        num_columns: columns of x and out.
        eps: added to the mean square.
    """
    for row in prange(num_rows):
        normalize_row(tag, x, weight, out, row, num_columns, np.float32(eps))


@compiled_parallel
def add_rms_norm(
    tag: Tag, x: int, delta: int, weight: int, out: int, num_rows: int, num_columns: int, eps: float
) -> None:
    """x += delta, then out = weight * x / rms(x)."""
    for row in prange(num_rows):
        add_row(tag, x, delta, row, num_columns)
        normalize_row(tag, x, weight, out, row, num_columns, np.float32(eps))


@compiled_parallel
def norm_heads(
    tag: Tag, qkv: int, weight: int, num_rows: int, num_heads: int, head_dim: int, num_normed: int, eps: float
) -> None:
    """Normalize the first heads of each row in place.

    Args:
        tag: format of qkv; weight is fp32, as are the statistics.
        qkv: address of [num_rows, num_heads, head_dim].
        weight: address of [num_normed, head_dim].
        num_rows: rows of qkv.
        num_heads: heads of a row, of any kind.
        head_dim: size of a head.
        num_normed: heads to normalize.
        eps: added to the mean square.
    """
    for row in prange(num_rows):
        normalize_heads(tag, qkv, weight, row * num_heads, head_dim, num_normed, np.float32(eps))


@compiled
def normalize_heads(tag: Tag, qkv: int, weight: int, first: int, head_dim: int, num_normed: int, eps: Any) -> None:
    """Normalize heads of one row in place; `first` is the number of its first head, those of all rows counted."""
    for head in range(num_normed):
        normalize_row(tag, qkv, weight + head * head_dim * 4, qkv, first + head, head_dim, eps)


@compiled
def add_row(tag: Tag, x: int, delta: int, row: int, num_columns: int) -> None:
    """x += delta, of one row."""
    residual = matrix(x, row + 1, num_columns, tag)[row]
    change = matrix(delta, row + 1, num_columns, tag)[row]
    for k in range(num_columns):
        residual[k] = narrow(widen(residual[k]) + widen(change[k]), tag)


@compiled
def normalize_row(tag: Tag, x: int, weight: int, out: int, row: int, num_columns: int, eps: Any) -> None:
    """out = weight * x / rms(x), of one row; eps in fp32."""
    source = matrix(x, row + 1, num_columns, tag)[row]
    target = matrix(out, row + 1, num_columns, tag)[row]
    scale = matrix(weight, 1, num_columns, np.float32(0))[0]
    total = np.float32(0)
    for k in range(num_columns):
        value = widen(source[k])
        total += value * value
    factor = np.float32(1) / np.sqrt(total / np.float32(num_columns) + eps)
    for k in range(num_columns):
        target[k] = narrow(scale[k] * (widen(source[k]) * factor), tag)
