"""How much memory the KV cache takes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.kv_cache import KvCache, cpu_cache_bytes
from lorafleet_serving.exceptions import InvalidSetting
from lorafleet_serving.models.kv_shape import KvShape

MIB, GIB = 1 << 20, 1 << 30
CPU = torch.device("cpu")
SHAPE = KvShape(num_layers=2, num_kv_heads=2, head_dim=16)
BLOCK_SIZE = 4
BLOCK_BYTES = BLOCK_SIZE * SHAPE.num_bytes_per_token(torch.float32)


@pytest.mark.parametrize(
    ("longest_bytes", "max_num_seqs", "available", "taken"),
    [
        (512 * MIB, 64, 64 * GIB, 4 * GIB),  # Eight sequences.
        (16 * MIB, 64, 64 * GIB, GIB),  # Eight would be less.
        (16 * MIB, 4, 64 * GIB, 128 * MIB),  # More than twice what can run.
        (512 * MIB, 64, 4 * GIB, GIB),  # A quarter of what there is.
        (16 * MIB, 1, 64 * GIB, 32 * MIB),
    ],
)
def test_what_a_cpu_gives_unless_told(longest_bytes: int, max_num_seqs: int, available: int, taken: int) -> None:
    assert cpu_cache_bytes(longest_bytes, max_num_seqs, available) == taken


def make_cache(
    *, max_num_seqs: int = 64, max_model_len: int | None = None, kv_cache_bytes: int | None = None
) -> KvCache:
    config = EngineConfig(
        Path(),
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        kv_cache_bytes=kv_cache_bytes,
    )
    return KvCache(SHAPE, config, torch.float32, CPU, max_positions=100)


def test_a_cache_that_is_not_told_its_size_takes_the_longest_sequence() -> None:
    cache = make_cache(max_num_seqs=3)
    assert cache.num_blocks == 2 * 3 * 25 - 1
    assert cache.longest_sequence(None) == 100
    assert make_cache(max_num_seqs=3, max_model_len=10).num_blocks == 2 * 3 * 3 - 1


@pytest.mark.parametrize("spare", [0, 1, BLOCK_BYTES - 1])
@pytest.mark.parametrize("num_blocks", [1, 10])
def test_a_cache_takes_no_more_than_its_budget_with_its_padding(num_blocks: int, spare: int) -> None:
    budget = (num_blocks + 1) * BLOCK_BYTES + spare
    cache = make_cache(kv_cache_bytes=budget)
    num_bytes = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert cache.num_blocks == num_blocks
    assert budget - BLOCK_BYTES < num_bytes <= budget


def test_a_cache_has_the_size_that_it_is_told() -> None:
    cache = make_cache(kv_cache_bytes=11 * BLOCK_BYTES)
    assert cache.num_blocks == 10
    assert cache.longest_sequence(None) == 40
    with pytest.raises(InvalidSetting, match="holds 40 tokens"):
        cache.longest_sequence(41)
    with pytest.raises(InvalidSetting, match="takes 100 tokens"):
        cache.longest_sequence(101)


@pytest.mark.parametrize("kv_cache_bytes", [1, BLOCK_BYTES, 2 * BLOCK_BYTES - 1])
def test_a_budget_without_room_for_a_block_and_padding_is_refused(kv_cache_bytes: int) -> None:
    said = rf"kv_cache_bytes is {kv_cache_bytes}, .* block of {BLOCK_BYTES} .* raise it to {2 * BLOCK_BYTES} or more"
    with pytest.raises(InvalidSetting, match=said):
        make_cache(kv_cache_bytes=kv_cache_bytes)
