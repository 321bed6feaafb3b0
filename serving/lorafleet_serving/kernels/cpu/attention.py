"""Rotation, cache write and attention of sequences that compute one token, straight from the paged cache.

Nothing is gathered: each sequence's keys and values are read where its blocks lie, once for all query heads that share
a key head. Softmax in two passes over scores kept in fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, matrix, narrow, widen
from lorafleet_serving.kernels.cpu.exponential import exponential

Ints = NDArray[np.int64]


@compiled_parallel
def rotate_and_store(
    tag: Tag,
    qkv: int,
    cos: int,
    sin: int,
    rotary_dim: int,
    keys: int,
    values: int,
    slots: Ints,
    shape: tuple[int, int, int, int],
) -> None:
    """Rotate queries and keys in place, and write keys and values into the cache.

    Args:
        tag: format of all tensors.
        qkv: address of [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]: queries, keys, values.
        cos: address of [num_tokens, rotary_dim].
        sin: address of [num_tokens, rotary_dim], the first half negated.
        rotary_dim: dimensions of each head that rotate, its first ones.
        keys: address of [num_kv_heads, num_slots, head_dim].
        values: likewise.
        slots: [num_tokens] slot of each row.
        shape: num_heads, num_kv_heads, head_dim, num_slots.
    """
    for row in prange(slots.shape[0]):
        _rotate_and_store(tag, qkv, cos, sin, rotary_dim, keys, values, row, slots[row], shape)


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
def _rotate_and_store(
    tag: Tag,
    qkv: int,
    cos: int,
    sin: int,
    rotary_dim: int,
    keys: int,
    values: int,
    row: int,
    slot: int,
    shape: tuple[int, int, int, int],
) -> None:
    num_heads, num_kv_heads, head_dim, num_slots = shape
    num_parts = num_heads + 2 * num_kv_heads
    heads = matrix(qkv, (row + 1) * num_parts, head_dim, tag)[row * num_parts :]
    angle_cos, angle_sin = matrix(cos, row + 1, rotary_dim, tag)[row], matrix(sin, row + 1, rotary_dim, tag)[row]
    for head in range(num_heads + num_kv_heads):
        _rotate(tag, heads[head], angle_cos, angle_sin)
    all_keys = matrix(keys, num_kv_heads * num_slots, head_dim, tag)
    all_values = matrix(values, num_kv_heads * num_slots, head_dim, tag)
    for head in range(num_kv_heads):
        all_keys[head * num_slots + slot] = heads[num_heads + head]
        all_values[head * num_slots + slot] = heads[num_heads + num_kv_heads + head]


@compiled
def _slots(table: Any, context_len: int, block_size: int, first: int) -> Any:
    """Rows of one key head's part of the cache, in order of the context."""
    slots = np.empty(context_len, dtype=np.int64)
    for position in range(context_len):
        slots[position] = first + table[position // block_size] * block_size + position % block_size
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
    scores = np.empty((group, slots.shape[0]), dtype=np.float32)
    for position in range(slots.shape[0]):
        _score(query, all_keys[slots[position]], scores, position)
    for member in range(group):
        _softmax(scores[member])
    attended = np.zeros((group, head_dim), dtype=np.float32)
    for position in range(slots.shape[0]):
        _accumulate(scores, position, all_values[slots[position]], attended)
    target = matrix(out, row + 1, num_heads * head_dim, tag)[row, first:last]
    for member in range(group):
        for k in range(head_dim):
            target[member * head_dim + k] = narrow(attended[member, k], tag)


@compiled
def _rotate(tag: Tag, head: Any, cos: Any, sin: Any) -> None:
    half = cos.shape[0] // 2
    for k in range(half):
        first, second = widen(head[k]), widen(head[half + k])
        head[k] = narrow(first * widen(cos[k]) + second * widen(sin[k]), tag)
        head[half + k] = narrow(second * widen(cos[half + k]) + first * widen(sin[half + k]), tag)


@compiled
def _scaled(query: Any, scale: Any) -> Any:
    wide = np.empty(query.shape, dtype=np.float32)
    for member in range(query.shape[0]):
        for k in range(query.shape[1]):
            wide[member, k] = widen(query[member, k]) * scale
    return wide


@compiled
def _score(query: Any, key: Any, scores: Any, position: int) -> None:
    for member in range(query.shape[0]):
        total = np.float32(0)
        row = query[member]
        for k in range(key.shape[0]):
            total += row[k] * widen(key[k])
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


@compiled
def _accumulate(weights: Any, position: int, value: Any, attended: Any) -> None:
    for member in range(attended.shape[0]):
        weight, row = weights[member, position], attended[member]
        for k in range(value.shape[0]):
            row[k] += weight * widen(value[k])
