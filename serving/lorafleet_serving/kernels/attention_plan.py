"""The attention of a step for the plain torch operators, prepared once and read by every layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lorafleet_serving.kernels.geometry import Ints, Span, StepGeometry


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


def plan_attention(geometry: StepGeometry, dtype: torch.dtype, device: torch.device) -> AttentionPlan:
    """Prepare a step: decodes in groups of similar length, each prefill alone."""
    by_length: dict[int, list[Span]] = defaultdict(list)
    for span in geometry.spans:
        if span.num_new == 1:
            # Lengths within a factor of two share a group, so at most half of it is padding.
            by_length[((span.context_len - 1) // geometry.block_size).bit_length()].append(span)
    return AttentionPlan(
        torch.from_numpy(geometry.new_slots()).to(device),
        tuple(_plan_decodes(spans, geometry, dtype, device) for spans in by_length.values()),
        tuple(plan_prefill(span, geometry, device) for span in geometry.spans if span.num_new > 1),
    )


def block_tables(spans: Sequence[Span], geometry: StepGeometry) -> Ints:
    """[num_seqs, num_blocks] blocks of each context, padded with the block that is never written."""
    num_blocks = -(-max(span.context_len for span in spans) // geometry.block_size)
    tables = np.full((len(spans), num_blocks), geometry.padding_block, dtype=np.int64)
    for row, span in zip(tables, spans, strict=True):
        held = span.block_table[:num_blocks]
        row[: len(held)] = held
    return tables


def _plan_decodes(
    spans: Sequence[Span], geometry: StepGeometry, dtype: torch.dtype, device: torch.device
) -> DecodeGroup:
    size = geometry.block_size
    tables = block_tables(spans, geometry)
    offsets = np.arange(tables.shape[1] * size)
    slots = tables[:, offsets // size] * size + offsets % size
    beyond = offsets[None, :] >= np.asarray([span.context_len for span in spans])[:, None]  # [num_seqs, num_slots]
    # What lies behind the context in its last block may be left over from another sequence.
    slots[beyond] = geometry.padding_block * size
    bias = torch.zeros(beyond.shape, dtype=dtype)
    bias.masked_fill_(torch.from_numpy(beyond), float("-inf"))
    rows = np.asarray([span.start for span in spans], dtype=np.int64)
    return DecodeGroup(
        torch.from_numpy(rows).to(device),
        torch.from_numpy(slots.reshape(-1)).to(device),
        bias.unsqueeze(1).to(device),
    )


def plan_prefill(span: Span, geometry: StepGeometry, device: torch.device) -> PrefillSpan:
    """Prepare a sequence with several new tokens."""
    num_computed = span.context_len - span.num_new
    mask = None
    if num_computed > 0:
        mask = torch.ones(span.num_new, span.context_len, dtype=torch.bool).tril(num_computed).to(device)
    slots = torch.from_numpy(geometry.slots(span, 0)).to(device)
    return PrefillSpan(span.start, span.end, slots, mask)
