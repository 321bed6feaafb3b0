"""The reference operators against formulas written out for one row at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorafleet_serving.kernels.attention_plan import AttentionPlan, DecodeGroup, LayerCache, PrefillSpan
from lorafleet_serving.kernels.reference import kv_store, paged_attention, sgmv_expand, sgmv_shrink
from lorafleet_serving.kernels.segments import LoraSegment, LoraSlice, LoraWeights

NUM_KV_HEADS, GROUP, HEAD_DIM, NUM_SLOTS = 2, 3, 8, 40
PADDING = NUM_SLOTS
SCALE = HEAD_DIM**-0.5


def make_weights(ranks: tuple[int, int], in_features: int, dtype: torch.dtype) -> LoraWeights:
    """Random weights for a site of outputs 5 and 7; a rank of 0 leaves a module alone."""
    slices, out_start, rank_start = [], 0, 0
    for rank, out_features in zip(ranks, (5, 7), strict=True):
        if rank:
            b = torch.randn(out_features, rank, dtype=dtype) / rank**0.5
            slices.append(LoraSlice(out_start, out_start + out_features, rank_start, rank_start + rank, b))
        out_start, rank_start = out_start + out_features, rank_start + rank
    return LoraWeights(torch.randn(rank_start, in_features, dtype=dtype) / in_features**0.5, tuple(slices))


def lora_by_row(x: Tensor, y: Tensor, segments: list[LoraSegment]) -> Tensor:
    expected = y.double()
    for start, end, weights in segments:
        for row in range(start, end):
            for part in weights.slices:
                a = weights.a[part.rank_start : part.rank_end].double()
                expected[row, part.out_start : part.out_end] += part.b.double() @ (a @ x[row].double())
    return expected


@pytest.mark.parametrize("in_features", [16, 257])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_mixed_ranks_and_modules_in_one_batch(in_features: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(9, in_features, dtype=dtype), torch.randn(9, 12, dtype=dtype)
    segments = [
        LoraSegment(1, 2, make_weights((8, 8), in_features, dtype)),
        LoraSegment(2, 5, make_weights((3, 0), in_features, dtype)),
        LoraSegment(5, 5, make_weights((4, 4), in_features, dtype)),
        LoraSegment(6, 9, make_weights((0, 5), in_features, dtype)),
    ]
    before, expected = y.clone(), lora_by_row(x, y, segments)
    sgmv_expand(y, sgmv_shrink(x, segments), segments)
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(y[[0, 5]], before[[0, 5]])
    assert torch.equal(y[2:5, 5:], before[2:5, 5:])


def make_cache(dtype: torch.dtype = torch.float32) -> LayerCache:
    """A cache whose every unused slot would spoil what reads it, but for the padding."""
    cache = torch.full((2, NUM_KV_HEADS, NUM_SLOTS + 1, HEAD_DIM), float("nan"), dtype=dtype)
    cache[:, :, PADDING] = 0
    return LayerCache(cache[0], cache[1])


def attend_by_row(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """query [num_heads, head_dim] over keys and values [context_len, num_kv_heads, head_dim]."""
    rows = []
    for head in range(query.shape[0]):
        weights = torch.softmax(keys[:, head // GROUP] @ query[head] * SCALE, dim=0)
        rows.append(weights @ values[:, head // GROUP])
    return torch.stack(rows)


def decode_group(contexts: list[list[int]], rows: list[int]) -> DecodeGroup:
    longest = max(len(slots) for slots in contexts)
    padded = [slots + [PADDING] * (longest - len(slots)) for slots in contexts]
    bias = [[0.0] * len(slots) + [float("-inf")] * (longest - len(slots)) for slots in contexts]
    return DecodeGroup(torch.tensor(rows), torch.tensor(padded).reshape(-1), torch.tensor(bias).unsqueeze(1))


def test_prefill_chunk_and_decodes_of_one_step() -> None:
    torch.manual_seed(0)
    cache = make_cache()
    contexts = [[7, 3, 30, 12], [1, 2], [20, 21, 22, 23, 24, 39]]
    num_new = [1, 1, 4]
    lengths = [len(context) for context in contexts]
    keys = [torch.randn(length, NUM_KV_HEADS, HEAD_DIM) for length in lengths]
    values = [torch.randn(length, NUM_KV_HEADS, HEAD_DIM) for length in lengths]
    new_slots: list[int] = []
    for context, key, value, count in zip(contexts, keys, values, num_new, strict=True):
        cached = torch.tensor(context[:-count])
        kv_store(cache, key[:-count], value[:-count], cached)
        new_slots += context[-count:]
    kv_store(
        cache,
        torch.cat([key[-count:] for key, count in zip(keys, num_new, strict=True)]),
        torch.cat([value[-count:] for value, count in zip(values, num_new, strict=True)]),
        torch.tensor(new_slots),
    )
    mask = torch.ones(4, 6, dtype=torch.bool).tril(2)
    plan = AttentionPlan(
        slot_mapping=torch.tensor(new_slots),
        decodes=(decode_group(contexts[:2], [0, 1]),),
        prefills=(PrefillSpan(2, 6, torch.tensor(contexts[2]), mask),),
    )
    query = torch.randn(6, NUM_KV_HEADS * GROUP, HEAD_DIM)
    output = paged_attention(query, cache, plan, SCALE)
    expected = [attend_by_row(query[row], keys[row], values[row]) for row in range(2)]
    expected += [attend_by_row(query[2 + row], keys[2][: row + 3], values[2][: row + 3]) for row in range(4)]
    torch.testing.assert_close(output, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_prefill_without_cached_context_is_causal() -> None:
    torch.manual_seed(0)
    cache = make_cache()
    slots = torch.tensor([5, 0, 17])
    key, value = torch.randn(3, NUM_KV_HEADS, HEAD_DIM), torch.randn(3, NUM_KV_HEADS, HEAD_DIM)
    kv_store(cache, key, value, slots)
    query = torch.randn(3, NUM_KV_HEADS * GROUP, HEAD_DIM)
    plan = AttentionPlan(slots, (), (PrefillSpan(0, 3, slots, None),))
    expected = torch.stack([attend_by_row(query[row], key[: row + 1], value[: row + 1]) for row in range(3)])
    torch.testing.assert_close(paged_attention(query, cache, plan, SCALE), expected, atol=1e-5, rtol=1e-5)


def test_store_touches_no_other_slot() -> None:
    cache = make_cache()
    kv_store(cache, torch.ones(1, NUM_KV_HEADS, HEAD_DIM), torch.ones(1, NUM_KV_HEADS, HEAD_DIM), torch.tensor([4]))
    assert int(torch.isnan(cache.keys).sum()) == NUM_KV_HEADS * HEAD_DIM * (NUM_SLOTS - 1)
    assert bool((cache.values[:, 4] == 1).all())
