"""Rotation, cache write and paged attention against plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.cpu.attention import paged_decode
from lorafleet_serving.kernels.cpu.element import TAGS
from lorafleet_serving.kernels.cpu.rotation import rotate_and_store

BLOCK_SIZE = 4
NUM_BLOCKS = 60
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Heads:
    """Geometry of an attention layer; `rotary_dim` dimensions of each head rotate."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int

    @property
    def width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.num_heads, self.num_kv_heads, self.head_dim, NUM_BLOCKS * BLOCK_SIZE

    def cache(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        keys, values = torch.randn(2, self.num_kv_heads, NUM_BLOCKS * BLOCK_SIZE, self.head_dim).to(dtype)
        return keys.contiguous(), values.contiguous()


LAYERS = [Heads(9, 3, 64, 64), Heads(4, 4, 16, 16), Heads(6, 1, 8, 8), Heads(4, 2, 20, 8)]


@pytest.mark.parametrize("dtype", TAGS)
@pytest.mark.parametrize("heads", LAYERS, ids=str)
def test_queries_and_keys_are_rotated_and_the_cache_is_written(heads: Heads, dtype: torch.dtype) -> None:
    keys, values = heads.cache(dtype)
    slots = np.array([7, 0, 31], dtype=np.int64)
    qkv, angles = torch.randn(3, heads.width).to(dtype), torch.randn(2, 3, heads.rotary_dim).to(dtype)
    wanted, old_keys = qkv.float().view(3, -1, heads.head_dim).clone(), keys.clone()
    turned = wanted[:, : heads.num_heads + heads.num_kv_heads, : heads.rotary_dim]
    first, second = turned.chunk(2, dim=-1)
    cos, sin = angles.float().unsqueeze(2)
    turned.copy_(turned * cos + torch.cat((second, first), dim=-1) * sin)
    rotate_and_store(
        *(TAGS[dtype], qkv.data_ptr(), angles[0].data_ptr(), angles[1].data_ptr(), heads.rotary_dim),
        *(keys.data_ptr(), values.data_ptr(), slots, heads.shape),
    )
    found = qkv.view(3, -1, heads.head_dim)
    torch.testing.assert_close(found.float(), wanted, atol=3e-2 if dtype is torch.bfloat16 else 1e-5, rtol=1e-2)
    at = torch.from_numpy(slots)
    assert torch.equal(keys[:, at], found[:, heads.num_heads : -heads.num_kv_heads].transpose(0, 1))
    assert torch.equal(values[:, at], found[:, -heads.num_kv_heads :].transpose(0, 1))
    keys[:, at] = old_keys[:, at]
    assert torch.equal(keys, old_keys), "a slot of another row was written"


@pytest.mark.parametrize("dtype", TAGS)
@pytest.mark.parametrize("heads", LAYERS, ids=str)
def test_each_row_attends_to_its_own_blocks(heads: Heads, dtype: torch.dtype) -> None:
    keys, values = heads.cache(dtype)
    context_lens = np.array([1, 4, 5, 37], dtype=np.int64)
    tables = np.random.default_rng(0).permutation(NUM_BLOCKS)[:40].reshape(4, 10)
    rows = np.array([5, 0, 3, 1], dtype=np.int64)
    qkv, out = torch.randn(6, heads.width).to(dtype), torch.zeros(6, heads.num_heads * heads.head_dim, dtype=dtype)
    paged_decode(
        *(TAGS[dtype], qkv.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr()),
        *(rows, tables, context_lens, heads.shape, heads.width, BLOCK_SIZE, 0.3),
    )
    for row, table, length in zip(rows, tables, context_lens, strict=True):
        slots = torch.tensor([table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(length)])
        query = qkv[row, : heads.num_heads * heads.head_dim].float().view(heads.num_heads, 1, heads.head_dim)
        wanted = F.scaled_dot_product_attention(
            query, keys[:, slots].float(), values[:, slots].float(), scale=0.3, enable_gqa=True
        )
        torch.testing.assert_close(out[row].float(), wanted.flatten(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert not out[[2, 4]].any(), "a row that does not decode was written"


def test_large_scores_do_not_overflow_and_a_nan_spoils_its_own_row() -> None:
    heads = LAYERS[0]
    keys, values = heads.cache(torch.float32)
    keys *= 1e3
    qkv, out = torch.randn(2, heads.width), torch.zeros(2, heads.num_heads * heads.head_dim)
    qkv[1, 3] = float("nan")
    tables, lengths = np.arange(10).reshape(2, 5), np.array([20, 18], dtype=np.int64)
    paged_decode(
        *(TAGS[torch.float32], qkv.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr()),
        *(np.arange(2), tables, lengths, heads.shape, heads.width, BLOCK_SIZE, 1.0),
    )
    assert torch.isfinite(out[0]).all()
    assert torch.isnan(out[1]).any()
