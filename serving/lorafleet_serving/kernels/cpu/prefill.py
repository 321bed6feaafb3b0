"""Attention of several new tokens of a sequence, in bf16 on a processor that multiplies pairs of bf16.

The context is brought into panels first: 64 keys, or 64 columns of values, side by side, the pairs that an instruction
multiplies next to each other. It is copied once for all queries, and then both products, scores and weighted values,
run at the processor's full width without a sum across a vector. Softmax in two passes over scores kept in fp32;
weights are rounded to bf16 behind their sum, as flash attention does (Dao et al. 2022, section 3.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from lorafleet_serving.kernels.cpu.dot import add_four_products
from lorafleet_serving.kernels.cpu.element import compiled, compiled_parallel, fetch, inlined, matrix, narrow
from lorafleet_serving.kernels.cpu.exponential import exponential
from lorafleet_serving.kernels.cpu.lanes import (
    NUM_ELEMENTS,
    NUM_SUMS,
    load_pairs,
    no_sums,
    paired_high,
    paired_low,
    repeated_pair,
    store_pairs,
    store_sums,
)
from lorafleet_serving.kernels.lora_table import Ints

_PANEL = 4 * NUM_SUMS
"""Keys, or columns of values, in a panel."""
_NUM_QUERIES = 4
"""Queries that are multiplied by a panel at the same time: their sums fill half of the registers."""
_AHEAD = 32
"""Positions by which keys and values are sent for before they are read: blocks lie anywhere in memory."""
_BF16 = np.uint16(0)
_PAIR = np.uint32(0)
"""Tag of two elements that are read as one word."""


def packed_elements(context_len: int, num_kv_heads: int, head_dim: int) -> int:
    """Elements of bf16 that the panels of a context take."""
    num_positions = -(-context_len // _PANEL) * _PANEL
    return num_kv_heads * num_positions * (head_dim + -(-head_dim // _PANEL) * _PANEL)


@compiled_parallel
def paged_prefill(
    qkv: int,
    keys: int,
    values: int,
    out: int,
    packed: int,
    slots: Ints,
    first_row: int,
    num_new: int,
    shape: tuple[int, int, int, int],
    row_width: int,
    scale: float,
    num_parts: int,
) -> None:
    """Attention of a sequence's new tokens over all of its context, of which they are the end.

    Args:
        qkv: address of rows of `row_width` columns, the queries first.
        keys: address of [num_kv_heads, num_slots, head_dim], bf16 as all tensors here.
        values: likewise.
        out: address of [num_tokens, num_heads * head_dim].
        packed: address of what the panels are written to, `packed_elements` long.
        slots: [context_len] slots of the context, in order.
        first_row: row of the first new token.
        num_new: new tokens.
        shape: num_heads, num_kv_heads, head_dim, num_slots; head_dim even.
        row_width: columns of a row of `qkv`.
        scale: factor of the scores.
        num_parts: parts that the work is done in at the same time.
    """
    num_panels = (slots.shape[0] + _PANEL - 1) // _PANEL
    for i in prange(shape[1] * num_panels):
        _pack(keys, values, packed, slots, i // num_panels, i % num_panels, shape)
    for part in prange(num_parts):
        context = (first_row, num_new, slots.shape[0])
        _attend(qkv, packed, out, context, shape, row_width, np.float32(scale), part, num_parts)


@compiled
def _packed_keys(packed: int, num_panels: int, shape: tuple[int, int, int, int]) -> Any:
    """[num_kv_heads * num_panels, head_dim / 2 * 64] words: of each panel the pairs of columns, key beside key."""
    return matrix(packed, shape[1] * num_panels, shape[2] // 2 * _PANEL, _PAIR)


@compiled
def _packed_values(packed: int, num_panels: int, shape: tuple[int, int, int, int]) -> Any:
    """[num_kv_heads * num_column_panels, num_panels * 32 * 64 * 2]: the pairs of positions, column beside column."""
    behind_keys = packed + 2 * shape[1] * num_panels * _PANEL * shape[2]
    num_column_panels = (shape[2] + _PANEL - 1) // _PANEL
    return matrix(behind_keys, shape[1] * num_column_panels, num_panels * _PANEL * _PANEL, _BF16)


@compiled
def _pack(
    keys: int, values: int, packed: int, slots: Ints, kv_head: int, panel: int, shape: tuple[int, int, int, int]
) -> None:
    """Bring 64 positions of one key head into panels, or as many as there are; zeros stand for further values."""
    num_kv_heads, head_dim, num_slots = shape[1], shape[2], shape[3]
    num_panels = (slots.shape[0] + _PANEL - 1) // _PANEL
    num_positions = min(_PANEL, slots.shape[0] - panel * _PANEL)
    words = matrix(keys, num_kv_heads * num_slots, head_dim // 2, _PAIR)
    target = _packed_keys(packed, num_panels, shape)[kv_head * num_panels + panel]
    rows = matrix(values, num_kv_heads * num_slots, head_dim, _BF16)
    nothing = np.zeros(head_dim, dtype=np.uint16)
    for position in range(num_positions):
        ahead = kv_head * num_slots + slots[min(panel * _PANEL + position + _AHEAD, slots.shape[0] - 1)]
        fetch(words[ahead])
        fetch(rows[ahead])
        key = words[kv_head * num_slots + slots[panel * _PANEL + position]]
        for pair in range(head_dim // 2):
            target[pair * _PANEL + position] = key[pair]
    columns = _packed_values(packed, num_panels, shape)
    num_column_panels = columns.shape[0] // num_kv_heads
    for position in range(0, _PANEL, 2):
        left = right = nothing
        if position < num_positions:
            left = rows[kv_head * num_slots + slots[panel * _PANEL + position]]
        if position + 1 < num_positions:
            right = rows[kv_head * num_slots + slots[panel * _PANEL + position + 1]]
        for number in range(num_column_panels):
            first = (panel * _PANEL + position) * _PANEL
            _pack_pair(left, right, number * _PANEL, columns[kv_head * num_column_panels + number], first)


@compiled
def _pack_pair(left: Any, right: Any, start: int, target: Any, first: int) -> None:
    """Put columns of two positions next to each other, from `start` on to the end of the panel or of the columns."""
    end = min(start + _PANEL, left.shape[0])
    whole = start + (end - start) // NUM_ELEMENTS * NUM_ELEMENTS
    for column in range(start, whole, NUM_ELEMENTS):
        one, other, at = load_pairs(left, column), load_pairs(right, column), first + 2 * (column - start)
        store_pairs(target, at, paired_low(one, other))
        store_pairs(target, at + NUM_ELEMENTS, paired_high(one, other))
    for column in range(whole, end):
        at = first + 2 * (column - start)
        target[at], target[at + 1] = left[column], right[column]


@compiled
def _attend(
    qkv: int,
    packed: int,
    out: int,
    context: tuple[int, int, int],
    shape: tuple[int, int, int, int],
    row_width: int,
    scale: Any,
    part: int,
    num_parts: int,
) -> None:
    """One part of the queries: four of those that share a key head in turn, since later ones see more."""
    first_row, num_new, context_len = context
    num_heads, num_kv_heads, head_dim, _ = shape
    group, num_panels = num_heads // num_kv_heads, (context_len + _PANEL - 1) // _PANEL
    keys, values = _packed_keys(packed, num_panels, shape).view(np.uint16), _packed_values(packed, num_panels, shape)
    num_column_panels = values.shape[0] // num_kv_heads
    asked = matrix(qkv, first_row + num_new, row_width // 2, _PAIR)
    target = matrix(out, first_row + num_new, num_heads * head_dim, _BF16)
    queries = np.zeros((_NUM_QUERIES, head_dim // 2), dtype=np.uint32)
    scores = np.empty((_NUM_QUERIES, num_panels * _PANEL), dtype=np.float32)
    weights = np.zeros((_NUM_QUERIES, num_panels * _PANEL), dtype=np.uint16)
    pairs = weights.view(np.uint32)
    sums = np.empty((_NUM_QUERIES, num_column_panels * _PANEL), dtype=np.float32)
    totals = np.ones(_NUM_QUERIES, dtype=np.float32)
    for kv_head in range(num_kv_heads):
        for first in range(part * _NUM_QUERIES, num_new * group, num_parts * _NUM_QUERIES):
            num_queries = min(_NUM_QUERIES, num_new * group - first)
            for member in range(num_queries):
                row, start = _place(first + member, kv_head, group, head_dim // 2)
                queries[member] = asked[first_row + row, start : start + head_dim // 2]
            last_seen = context_len - num_new + (first + num_queries - 1) // group + 1
            num_seen = (last_seen + _PANEL - 1) // _PANEL
            for panel in range(num_seen):
                _multiply(queries, keys[kv_head * num_panels + panel], head_dim // 2, scores, panel * _PANEL)
            for member in range(num_queries):
                length = context_len - num_new + (first + member) // group + 1
                totals[member] = _weigh(scores[member], length, scale, weights[member, : num_seen * _PANEL])
            for number in range(num_column_panels):
                columns = values[kv_head * num_column_panels + number]
                _multiply(pairs, columns, num_seen * _PANEL // 2, sums, number * _PANEL)
            for member in range(num_queries):
                row, start = _place(first + member, kv_head, group, head_dim)
                _store(sums[member], totals[member], target[first_row + row, start : start + head_dim])


@inlined
def _place(number: int, kv_head: int, group: int, width: int) -> tuple[int, int]:
    """Row and first column of a query among those of a key head, which are counted row by row."""
    return number // group, (kv_head * group + number % group) * width


@compiled
def _weigh(scores: Any, length: int, scale: Any, weights: Any) -> Any:
    """Weights of the first `length` positions, not yet divided by their sum, which is returned; zeros behind them."""
    highest = scores[0]
    for position in range(1, length):
        highest = max(highest, scores[position])
    total = np.float32(0)
    for position in range(length):
        weight = exponential((scores[position] - highest) * scale)
        total += weight
        weights[position] = narrow(weight, _BF16)
    weights[length:] = 0
    return total


@compiled
def _store(sums: Any, total: Any, target: Any) -> None:
    factor = np.float32(1) / total
    for column in range(target.shape[0]):
        target[column] = narrow(sums[column] * factor, _BF16)


@compiled
def _multiply(x: Any, panel: Any, num_pairs: int, y: Any, first: int) -> None:
    """y[i, first : first + 64] = x[i] . panel, for four rows of pairs."""
    s0 = s1 = s2 = s3 = no_sums(), no_sums(), no_sums(), no_sums()
    for pair in range(num_pairs):
        at = pair * 2 * _PANEL
        low = load_pairs(panel, at), load_pairs(panel, at + NUM_ELEMENTS)
        part = (*low, load_pairs(panel, at + 2 * NUM_ELEMENTS), load_pairs(panel, at + 3 * NUM_ELEMENTS))
        s0 = add_four_products(s0, repeated_pair(x[0, pair]), part)
        s1 = add_four_products(s1, repeated_pair(x[1, pair]), part)
        s2 = add_four_products(s2, repeated_pair(x[2, pair]), part)
        s3 = add_four_products(s3, repeated_pair(x[3, pair]), part)
    _store_four(y[0], first, s0)
    _store_four(y[1], first, s1)
    _store_four(y[2], first, s2)
    _store_four(y[3], first, s3)


@inlined
def _store_four(y: Any, first: int, s: Any) -> None:
    store_sums(y, first, s[0])
    store_sums(y, first + NUM_SUMS, s[1])
    store_sums(y, first + 2 * NUM_SUMS, s[2])
    store_sums(y, first + 3 * NUM_SUMS, s[3])
