"""Rotation of queries and keys by their positions, and the write into the paged cache."""

from __future__ import annotations

from typing import Any

from numba import prange

from lorafleet_serving.kernels.cpu.element import Tag, compiled, compiled_parallel, inlined, matrix, narrow, widen
from lorafleet_serving.kernels.lora_table import Ints


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
        rotate_and_store_row(tag, qkv, cos, sin, rotary_dim, keys, values, row, slots[row], shape)


@compiled
def rotate_and_store_row(
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
    """One row of it."""
    num_heads, num_kv_heads, head_dim, num_slots = shape
    num_parts = num_heads + 2 * num_kv_heads
    heads = matrix(qkv, (row + 1) * num_parts, head_dim, tag)[row * num_parts :]
    angle_cos, angle_sin = matrix(cos, row + 1, rotary_dim, tag)[row], matrix(sin, row + 1, rotary_dim, tag)[row]
    turning = heads[: num_heads + num_kv_heads]
    if rotary_dim == 64:
        _rotate(tag, turning, angle_cos, angle_sin, 32)
    elif rotary_dim == 128:
        _rotate(tag, turning, angle_cos, angle_sin, 64)
    else:
        _rotate(tag, turning, angle_cos, angle_sin, rotary_dim // 2)
    all_keys = matrix(keys, num_kv_heads * num_slots, head_dim, tag)
    all_values = matrix(values, num_kv_heads * num_slots, head_dim, tag)
    for head in range(num_kv_heads):
        all_keys[head * num_slots + slot] = heads[num_heads + head]
        all_values[head * num_slots + slot] = heads[num_heads + num_kv_heads + head]


@inlined
def _rotate(tag: Tag, heads: Any, cos: Any, sin: Any, half: int) -> None:
    """Rotate the first `2 * half` dimensions of each head in place."""
    for number in range(heads.shape[0]):
        head = heads[number]
        for k in range(half):
            first, second = widen(head[k]), widen(head[half + k])
            head[k] = narrow(first * widen(cos[k]) + second * widen(sin[k]), tag)
            head[half + k] = narrow(second * widen(cos[half + k]) + first * widen(sin[half + k]), tag)
