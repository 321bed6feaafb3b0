"""Attention of prompts over packed contexts, against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.cpu.lanes import HAS_PAIR_PRODUCTS
from lorafleet_serving.kernels.cpu.prefill import packed_elements, paged_prefill
from lorafleet_serving.kernels.lora_table import Ints

pytestmark = pytest.mark.skipif(not HAS_PAIR_PRODUCTS, reason="the processor does not multiply pairs of bf16")

NUM_SLOTS = 400
SCALE = 0.3
HEADS = [(9, 3, 64), (4, 4, 16), (6, 1, 8), (4, 2, 20), (4, 2, 96), (2, 1, 256)]
"""num_heads, num_kv_heads, head_dim"""
SPANS = [(1, 1), (2, 70), (5, 5), (7, 64), (64, 64), (65, 130), (130, 131), (3, 300)]
"""New tokens, and the context with them."""


def make(heads: tuple[int, int, int], num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of queries, keys and values, and a cache."""
    num_heads, num_kv_heads, head_dim = heads
    keys, values = torch.randn(2, num_kv_heads, NUM_SLOTS, head_dim).bfloat16()
    qkv = torch.randn(num_rows, (num_heads + 2 * num_kv_heads) * head_dim).bfloat16()
    return qkv, keys.contiguous(), values.contiguous()


def prefill(
    qkv: Tensor, keys: Tensor, values: Tensor, num_heads: int, slots: Ints, first_row: int, num_new: int
) -> Tensor:
    num_kv_heads, _, head_dim = keys.shape
    out = torch.zeros(qkv.shape[0], num_heads * head_dim).bfloat16()
    # Whatever lay there before.
    packed = torch.full((packed_elements(slots.shape[0], num_kv_heads, head_dim),), float("nan")).bfloat16()
    paged_prefill(
        *(qkv.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr(), packed.data_ptr()),
        *(slots, first_row, num_new, (num_heads, num_kv_heads, head_dim, NUM_SLOTS), qkv.shape[1], SCALE, 2),
    )
    return out


def attended(qkv: Tensor, keys: Tensor, values: Tensor, num_heads: int, slots: Ints) -> Tensor:
    """What the last tokens of a context see, in fp32."""
    at, num_new = torch.from_numpy(slots), qkv.shape[0]
    queries = qkv[:, : num_heads * keys.shape[2]].float().view(num_new, num_heads, -1).transpose(0, 1)
    mask = torch.ones(num_new, at.shape[0], dtype=torch.bool).tril(at.shape[0] - num_new)
    found = F.scaled_dot_product_attention(
        queries, keys[:, at].float(), values[:, at].float(), attn_mask=mask, scale=SCALE, enable_gqa=True
    )
    return found.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("span", SPANS, ids=str)
def test_new_tokens_attend_to_all_before_them(span: tuple[int, int], heads: tuple[int, int, int]) -> None:
    num_new, context_len = span
    qkv, keys, values = make(heads, num_new + 3)
    slots = np.random.default_rng(0).permutation(NUM_SLOTS)[:context_len]
    out = prefill(qkv, keys, values, heads[0], slots, 2, num_new)
    wanted = attended(qkv[2 : 2 + num_new], keys, values, heads[0], slots)
    torch.testing.assert_close(out[2 : 2 + num_new].float(), wanted, atol=2e-2, rtol=2e-2)
    assert not out[:2].any(), "a row before was written"
    assert not out[2 + num_new :].any(), "a row behind was written"


def test_error_is_no_larger_than_that_of_torch_in_bf16() -> None:
    heads = HEADS[0]
    qkv, keys, values = make(heads, 200)
    slots = np.random.default_rng(1).permutation(NUM_SLOTS)[:350]
    wanted = attended(qkv, keys, values, heads[0], slots)
    at = torch.from_numpy(slots)
    mask = torch.ones(200, 350, dtype=torch.bool).tril(150)
    queries = qkv[:, : heads[0] * heads[2]].view(200, heads[0], -1).transpose(0, 1)
    # With a dimension for the batch torch takes its flash attention, which rounds weights as we do.
    batch = queries.unsqueeze(0), keys[:, at].unsqueeze(0), values[:, at].unsqueeze(0)
    flash = F.scaled_dot_product_attention(*batch, attn_mask=mask, scale=SCALE, enable_gqa=True)
    error = (prefill(qkv, keys, values, heads[0], slots, 0, 200).float() - wanted).square().mean()
    assert error <= 1.1 * (flash[0].transpose(0, 1).flatten(1).float() - wanted).square().mean()


def test_nothing_but_the_context_is_seen() -> None:
    heads = HEADS[0]
    qkv, keys, values = make(heads, 9)
    slots = np.random.default_rng(2).permutation(NUM_SLOTS)[:77]
    wanted = prefill(qkv, keys, values, heads[0], slots, 0, 9)
    others = torch.ones(NUM_SLOTS, dtype=torch.bool)
    others[torch.from_numpy(slots)] = False
    keys[:, others], values[:, others] = float("nan"), float("inf")
    assert torch.equal(prefill(qkv, keys, values, heads[0], slots, 0, 9), wanted)


def test_large_scores_do_not_overflow_and_a_nan_spoils_its_own_row() -> None:
    heads = HEADS[0]
    qkv, keys, values = make(heads, 6)
    keys *= 1e3
    qkv[4, 3] = float("nan")
    out = prefill(qkv, keys, values, heads[0], np.arange(100), 0, 6)
    assert torch.isnan(out[4]).any()
    assert torch.isfinite(out[[0, 1, 2, 3, 5]]).all()
