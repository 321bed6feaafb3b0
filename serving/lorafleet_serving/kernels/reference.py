"""Every operator in plain torch: the CPU path, and the oracle of every faster form.

No operator knows of requests or adapters' names: rows, slots and segments come prepared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.attention_plan import AttentionPlan, DecodeGroup, LayerCache, PrefillSpan
from lorafleet_serving.kernels.segments import LoraSegment


def kv_store(cache: LayerCache, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
    """Write keys and values of a step into the cache.

    Args:
        cache: cache of the layer, written in place.
        key: [num_tokens, num_kv_heads, head_dim]
        value: [num_tokens, num_kv_heads, head_dim]
        slot_mapping: [num_tokens]
    """
    cache.keys.index_copy_(1, slot_mapping, key.transpose(0, 1))
    cache.values.index_copy_(1, slot_mapping, value.transpose(0, 1))


def paged_attention(query: Tensor, cache: LayerCache, plan: AttentionPlan, scale: float) -> Tensor:
    """Causal attention of every row of a step over its own sequence's context.

    Args:
        query: [num_tokens, num_heads, head_dim]
        cache: cache of the layer; the step's own keys and values are in it.
        plan: where the contexts lie.
        scale: factor of the scores.

    Returns:
        [num_tokens, num_heads, head_dim]
    """
    output = torch.empty_like(query)
    for group in plan.decodes:
        output.index_copy_(0, group.rows, _decode(query.index_select(0, group.rows), cache, group, scale))
    for span in plan.prefills:
        output[span.start : span.end] = _prefill(query[span.start : span.end], cache, span, scale)
    return output


def sgmv_shrink(x: Tensor, segments: Sequence[LoraSegment]) -> Tensor:
    """v[rows] = x[rows] @ A.T per segment, with each adapter's own rank.

    Args:
        x: [num_tokens, in_features]
        segments: segments of the site, at least one.

    Returns:
        [num_tokens, largest number of ranks]; rows without an adapter, and columns beyond the
        adapter's ranks, are not written.
    """
    v = x.new_empty(x.shape[0], max(segment.weights.num_ranks for segment in segments))
    for start, end, weights in segments:
        v[start:end, : weights.num_ranks] = F.linear(x[start:end], weights.a)
    return v


def sgmv_expand(y: Tensor, v: Tensor, segments: Sequence[LoraSegment]) -> None:
    """y[rows, slice] += v[rows, ranks] @ B.T per segment and merged module.

    Args:
        y: [num_tokens, out_features], added to in place.
        v: what `sgmv_shrink` gave.
        segments: segments of the site.
    """
    for start, end, weights in segments:
        for part in weights.slices:
            rows = v[start:end, part.rank_start : part.rank_end]
            y[start:end, part.out_start : part.out_end].addmm_(rows, part.b.t())


def _decode(query: Tensor, cache: LayerCache, group: DecodeGroup, scale: float) -> Tensor:
    num_seqs, num_heads, head_dim = query.shape
    num_kv_heads = cache.keys.shape[0]
    # The heads that share a key head take the place of query positions, so that no key is copied.
    keys = cache.keys.index_select(1, group.slots).view(num_kv_heads * num_seqs, -1, head_dim)
    values = cache.values.index_select(1, group.slots).view(num_kv_heads * num_seqs, -1, head_dim)
    grouped = (query * scale).view(num_seqs, num_kv_heads, -1, head_dim).transpose(0, 1)
    scores = torch.bmm(grouped.reshape(num_kv_heads * num_seqs, -1, head_dim), keys.transpose(1, 2))
    scores = scores.view(num_kv_heads, num_seqs, -1, keys.shape[1]) + group.bias
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    attended = torch.bmm(weights.view(num_kv_heads * num_seqs, -1, keys.shape[1]), values)
    return attended.view(num_kv_heads, num_seqs, -1, head_dim).transpose(0, 1).reshape(num_seqs, num_heads, head_dim)


def _prefill(query: Tensor, cache: LayerCache, span: PrefillSpan, scale: float) -> Tensor:
    attended = F.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        cache.keys.index_select(1, span.slots).unsqueeze(0),
        cache.values.index_select(1, span.slots).unsqueeze(0),
        attn_mask=span.mask,
        is_causal=span.mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != cache.keys.shape[0],
    )
    return attended.squeeze(0).transpose(0, 1)
