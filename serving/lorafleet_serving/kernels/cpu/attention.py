"""Attention of sequences that compute one token, straight from the paged cache.

Nothing is gathered: each sequence's keys and values are read where its blocks lie, once for all query heads that share
a key head. Softmax in two passes over scores kept in fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from lorafleet_serving.kernels.cpu.element import (
    LINE_BYTES,
    Tag,
    compiled,
    compiled_parallel,
    inlined,
    matrix,
    narrow,
    prefetch,
    widen,
)
from lorafleet_serving.kernels.cpu.exponential import exponential

Ints = NDArray[np.int64]

_AHEAD = 8
"""Positions by which keys are sent for before they are read: blocks lie anywhere in memory."""


@compiled_parallel
def paged_decode(
    tag: Tag,
    qkv: int,
    keys: int,
    values: int,
    out: int,
    rows: Ints,
    tables: Ints,
    context_lens: Ints,
    shape: tuple[int, int, int, int],
    row_width: int,
    block_size: int,
    scale: float,
) -> None:
    """Attention of rows that are their sequence's only new token.

    Args:
        tag: format of all tensors.
        qkv: address of rows of `row_width` columns, the queries first.
        keys: address of [num_kv_heads, num_slots, head_dim].
        values: likewise.
        out: address of [num_tokens, num_heads * head_dim].
        rows: [num_seqs] row of each sequence.
        tables: [num_seqs, num_blocks] blocks of each sequence.
        context_lens: [num_seqs] tokens of each sequence, the new one among them.
        shape: num_heads, num_kv_heads, head_dim, num_slots.
        row_width: columns of a row of `qkv`.
        block_size: slots of a block.
        scale: factor of the scores.
    """
    num_kv_heads = shape[1]
    for i in prange(rows.shape[0] * num_kv_heads):
        seq, kv_head = i // num_kv_heads, i % num_kv_heads
        slots = _slots(tables[seq], context_lens[seq], block_size, kv_head * shape[3])
        _attend(tag, qkv, keys, values, out, rows[seq], kv_head, slots, shape, row_width, np.float32(scale))


@compiled
def _slots(table: Any, context_len: int, block_size: int, first: int) -> Any:
    """Rows of one key head's part of the cache, in order of the context."""
    slots = np.empty(context_len, dtype=np.int64)
    start = 0
    # Block by block: to divide each position by the size of a block would take longer.
    for block in table[: (context_len + block_size - 1) // block_size]:
        for offset in range(min(block_size, context_len - start)):
            slots[start + offset] = first + block * block_size + offset
        start += block_size
    return slots


@compiled
def _attend(
    tag: Tag,
    qkv: int,
    keys: int,
    values: int,
    out: int,
    row: int,
    kv_head: int,
    slots: Any,
    shape: tuple[int, int, int, int],
    row_width: int,
    scale: Any,
) -> None:
    num_heads, num_kv_heads, head_dim, num_slots = shape
    group = num_heads // num_kv_heads
    first, last = kv_head * group * head_dim, (kv_head + 1) * group * head_dim
    query = _scaled(matrix(qkv, row + 1, row_width, tag)[row, first:last].reshape(group, head_dim), scale)
    all_keys = matrix(keys, num_kv_heads * num_slots, head_dim, tag)
    all_values = matrix(values, num_kv_heads * num_slots, head_dim, tag)
    attended = np.zeros((group, head_dim), dtype=np.float32)
    # The usual sizes are constants to the compiler: so short a loop takes half its time to find out how long it is.
    if head_dim == 64:
        _attend_heads(query, all_keys, all_values, slots, attended, 64)
    elif head_dim == 128:
        _attend_heads(query, all_keys, all_values, slots, attended, 128)
    else:
        _attend_heads(query, all_keys, all_values, slots, attended, head_dim)
    target = matrix(out, row + 1, num_heads * head_dim, tag)[row, first:last]
    for member in range(group):
        for k in range(head_dim):
            target[member * head_dim + k] = narrow(attended[member, k], tag)


@inlined
def _attend_heads(query: Any, keys: Any, values: Any, slots: Any, attended: Any, head_dim: int) -> None:
    """attended += softmax(query keys.T) values, for the heads that share keys and values."""
    scores = np.empty((query.shape[0], slots.shape[0]), dtype=np.float32)
    _score(query, keys, values, slots, scores, head_dim)
    for member in range(scores.shape[0]):
        _softmax(scores[member])
    _mix(scores, values, slots, attended, head_dim)


@compiled
def _scaled(query: Any, scale: Any) -> Any:
    wide = np.empty(query.shape, dtype=np.float32)
    for member in range(query.shape[0]):
        for k in range(query.shape[1]):
            wide[member, k] = widen(query[member, k]) * scale
    return wide


@inlined
def _score(query: Any, keys: Any, values: Any, slots: Any, scores: Any, head_dim: int) -> None:
    """scores = query keys.T; the values are sent for meanwhile, and the keys that come next."""
    for position in range(slots.shape[0]):
        key, value = keys[slots[position]], values[slots[position]]
        ahead = keys[slots[min(position + _AHEAD, slots.shape[0] - 1)]]
        for k in range(0, head_dim, LINE_BYTES // keys.itemsize):
            prefetch(value, k)
            prefetch(ahead, k)
        for member in range(query.shape[0]):
            total = np.float32(0)
            for k in range(head_dim):
                total += query[member, k] * widen(key[k])
            scores[member, position] = total


@compiled
def _softmax(scores: Any) -> None:
    highest = scores[0]
    for position in range(1, scores.shape[0]):
        highest = max(highest, scores[position])
    total = np.float32(0)
    for position in range(scores.shape[0]):
        scores[position] = exponential(scores[position] - highest)
        total += scores[position]
    for position in range(scores.shape[0]):
        scores[position] /= total


@inlined
def _mix(weights: Any, values: Any, slots: Any, attended: Any, head_dim: int) -> None:
    """attended += weights values, four values at a time, so that the sums are read and written as seldom."""
    num_positions = slots.shape[0]
    for position in range(0, num_positions - 3, 4):
        v0, v1 = values[slots[position]], values[slots[position + 1]]
        v2, v3 = values[slots[position + 2]], values[slots[position + 3]]
        for member in range(attended.shape[0]):
            w0, w1 = weights[member, position], weights[member, position + 1]
            w2, w3 = weights[member, position + 2], weights[member, position + 3]
            row = attended[member]
            for k in range(head_dim):
                row[k] += w0 * widen(v0[k]) + w1 * widen(v1[k]) + w2 * widen(v2[k]) + w3 * widen(v3[k])
    for position in range(num_positions // 4 * 4, num_positions):
        value = values[slots[position]]
        for member in range(attended.shape[0]):
            row = attended[member]
            for k in range(head_dim):
                row[k] += weights[member, position] * widen(value[k])
