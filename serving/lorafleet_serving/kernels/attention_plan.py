"""Where the keys and values of a step lie, prepared once per step and read by every layer.

A slot is the place of one token in the KV cache. The last block of the cache is never written: its
slots stand for padding, so that what is gathered is always finite.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DecodeGroup(NamedTuple):
    """Sequences with one new token each and contexts of similar length, attended in one go."""

    rows: Tensor
    """[num_seqs] rows of the step"""
    slots: Tensor
    """[num_seqs * max_context_len] slots of the contexts, padded with a slot that is never written"""
    bias: Tensor
    """[num_seqs, 1, max_context_len] 0 on the context, minus infinity on padding"""


class PrefillSpan(NamedTuple):
    """One sequence with several new tokens."""

    start: int
    end: int
    """Rows of the step."""
    slots: Tensor
    """[context_len] slots of the whole context, the new tokens last"""
    mask: Tensor | None
    """[num_new, context_len] True where a new token sees the context; None if all of the context is new"""


class AttentionPlan(NamedTuple):
    """The attention of one step."""

    slot_mapping: Tensor
    """[num_tokens] slot that each row's key and value go to"""
    decodes: tuple[DecodeGroup, ...]
    prefills: tuple[PrefillSpan, ...]


class LayerCache(NamedTuple):
    """KV cache of one layer."""

    keys: Tensor
    """[num_kv_heads, num_slots, head_dim]"""
    values: Tensor
    """[num_kv_heads, num_slots, head_dim]"""
