"""Every form of the operators against formulas written out for one row at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.geometry import LayerCache, Span, StepGeometry
from lorafleet_serving.kernels.lora_table import AddressTable, address_table
from lorafleet_serving.kernels.lora_weights import LoraSlice, LoraWeights, PackedLora
from lorafleet_serving.kernels.operators import Activation, Kernels, Rotation
from lorafleet_serving.kernels.segments import LoraRun
from lorafleet_serving.kernels.weights import PlainWeight
from tests.serving.kernels.forms import FORMS, make_kernels

NUM_KV_HEADS, GROUP = 2, 3
HEAD_DIMS = [8, 64, 80, 128]
NUM_HEADS = NUM_KV_HEADS * GROUP
BLOCK_SIZE, NUM_BLOCKS = 4, 11
PADDING_BLOCK = NUM_BLOCKS
FORMATS = [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)]


@dataclass(frozen=True)
class Adapter:
    """An adapter of a model with one site."""

    sites: tuple[PackedLora | None, ...]

    @cached_property
    def addresses(self) -> AddressTable:
        return address_table(self.sites)

    def packed(self, kernels: Kernels) -> Adapter:
        sites = [None if site is None else site.dense() for site in self.sites]
        return Adapter(tuple(kernels.pack_lora(sites, sum(site.num_elements for site in sites if site is not None))))


def make_adapter(ranks: tuple[int, int], in_features: int, dtype: torch.dtype) -> Adapter:
    """Random weights for a site of outputs 5 and 7; a rank of 0 leaves a module alone."""
    slices, out_start, rank_start = [], 0, 0
    for rank, out_features in zip(ranks, (5, 7), strict=True):
        if rank:
            b = (torch.randn(rank, out_features) / rank**0.5).to(dtype).t()
            slices.append(LoraSlice(out_start, out_start + out_features, rank_start, rank_start + rank, b))
        out_start, rank_start = out_start + out_features, rank_start + rank
    a = (torch.randn(rank_start, in_features) / in_features**0.5).to(dtype)
    return Adapter((LoraWeights(a, tuple(slices)) if slices else None,))


def lora_by_row(x: Tensor, y: Tensor, runs: Sequence[LoraRun]) -> Tensor:
    expected = y.double()
    for start, end, adapter in runs:
        weights = adapter.sites[0]
        for row in range(start, end if weights is not None else start):
            assert weights is not None
            dense = weights.dense()
            for part in dense.slices:
                a = dense.a[part.rank_start : part.rank_end].double()
                expected[row, part.out_start : part.out_end] += part.b.double() @ (a @ x[row].double())
    return expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("in_features", [16, 257])
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
def test_mixed_ranks_modules_and_lengths_in_one_batch(
    form: str, in_features: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(190, in_features).to(dtype), torch.randn(190, 12).to(dtype)
    adapters = {
        (1, 2): make_adapter((8, 8), in_features, dtype),
        (2, 5): make_adapter((3, 0), in_features, dtype),
        (5, 7): make_adapter((0, 0), in_features, dtype),
        (7, 90): make_adapter((4, 4), in_features, dtype),  # Longer than what goes row by row.
        (95, 190): make_adapter((0, 5), in_features, dtype),
    }
    kernels = make_kernels(form, dtype)
    before = y.clone()
    expected = lora_by_row(x, y, [LoraRun(*ends, adapter) for ends, adapter in adapters.items()])
    runs = [LoraRun(*ends, adapter.packed(kernels)) for ends, adapter in adapters.items()]
    kernels.add_lora(x, y, kernels.plan_lora(runs), 0)
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(y[[0, 5, 6, 90, 94]], before[[0, 5, 6, 90, 94]])
    assert torch.equal(y[2:5, 5:], before[2:5, 5:])


def make_cache(dtype: torch.dtype, head_dim: int) -> LayerCache:
    """A cache whose every unused slot would spoil what reads it, but for the padding."""
    num_slots = (NUM_BLOCKS + 1) * BLOCK_SIZE
    cache = torch.full((2, NUM_KV_HEADS, num_slots, head_dim), float("nan"), dtype=dtype)
    cache[:, :, PADDING_BLOCK * BLOCK_SIZE :] = 0
    return LayerCache(cache[0], cache[1])


def attend_by_row(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """query [num_heads, head_dim] over keys and values [context_len, num_kv_heads, head_dim]."""
    rows = []
    for head in range(query.shape[0]):
        weights = torch.softmax(keys[:, head // GROUP] @ query[head] * query.shape[1] ** -0.5, dim=0)
        rows.append(weights @ values[:, head // GROUP])
    return torch.cat(rows)


def unrotated(qkv: Tensor) -> Rotation:
    shape = (qkv.shape[0], qkv.shape[2])
    return Rotation(torch.ones(shape, dtype=qkv.dtype), torch.zeros(shape, dtype=qkv.dtype))


def run_attention(kernels: Kernels, cache: LayerCache, spans: Sequence[Span], qkv: Tensor) -> Tensor:
    plan = kernels.plan_attention(StepGeometry(spans, BLOCK_SIZE, PADDING_BLOCK))
    kernels.rotate_and_store(qkv, unrotated(qkv), cache, plan)
    return kernels.paged_attention(qkv, cache, plan, qkv.shape[2] ** -0.5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
def test_chunks_and_decodes_see_their_own_context_alone(
    form: str, head_dim: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    kernels, cache = make_kernels(form, dtype), make_cache(dtype, head_dim)
    tables = [[7, 2], [1], [5, 0, 9], [3]]
    lengths, num_new = [6, 3, 10, 4], [1, 1, 5, 4]
    tokens = [torch.randn(length, NUM_HEADS + 2 * NUM_KV_HEADS, head_dim).to(dtype) for length in lengths]
    before, now = [], []
    row = start = 0
    for table, length, new in zip(tables, lengths, num_new, strict=True):
        if length > new:
            before.append(Span(start, start + length - new, length - new, table))
            start += length - new
        now.append(Span(row, row + new, length, table))
        row += new
    cached = [rows[:-new] for rows, new in zip(tokens, num_new, strict=True) if rows.shape[0] > new]
    run_attention(kernels, cache, before, torch.cat(cached).clone())
    fresh = torch.cat([rows[-new:] for rows, new in zip(tokens, num_new, strict=True)])
    output = run_attention(kernels, cache, now, fresh.clone())
    expected = [
        attend_by_row(rows[end - 1, :NUM_HEADS], rows[:end, NUM_HEADS:-NUM_KV_HEADS], rows[:end, -NUM_KV_HEADS:])
        for rows, new in zip((rows.double() for rows in tokens), num_new, strict=True)
        for end in range(rows.shape[0] - new + 1, rows.shape[0] + 1)
    ]
    torch.testing.assert_close(output.double(), torch.stack(expected), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(8, 4), (80, 64), (128, 128)])
def test_part_of_a_head_rotates_and_no_other_slot_is_written(form: str, head_dim: int, rotary_dim: int) -> None:
    torch.manual_seed(0)
    kernels, cache = make_kernels(form), make_cache(torch.float32, head_dim)
    qkv, angles = torch.randn(2, NUM_HEADS + 2 * NUM_KV_HEADS, head_dim), torch.randn(2, 2, rotary_dim)
    plan = kernels.plan_attention(StepGeometry([Span(0, 2, 2, [6])], BLOCK_SIZE, PADDING_BLOCK))
    expected = qkv.clone()
    first, second = qkv[:, :-NUM_KV_HEADS, :rotary_dim].chunk(2, dim=-1)
    cos, sin = angles.unsqueeze(2)
    turned = torch.cat((first, second), -1) * cos + torch.cat((second, first), -1) * sin
    expected[:, :-NUM_KV_HEADS, :rotary_dim] = turned
    kernels.rotate_and_store(qkv, Rotation(angles[0], angles[1]), cache, plan)
    torch.testing.assert_close(qkv, expected)
    written = slice(6 * BLOCK_SIZE, 6 * BLOCK_SIZE + 2)
    assert torch.equal(cache.keys[:, written], qkv[:, NUM_HEADS:-NUM_KV_HEADS].transpose(0, 1))
    assert torch.equal(cache.values[:, written], qkv[:, -NUM_KV_HEADS:].transpose(0, 1))
    assert int(torch.isnan(cache.keys).sum()) == NUM_KV_HEADS * head_dim * (NUM_BLOCKS * BLOCK_SIZE - 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
def test_norm_gate_and_linear_layer(form: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    kernels = make_kernels(form, dtype)
    x, delta, weight = torch.randn(5, 16).to(dtype), torch.randn(5, 16).to(dtype), torch.randn(16)
    total = x + delta
    normed = kernels.add_rms_norm(x, delta, weight, 1e-5)
    assert torch.equal(x, total)
    exact = total.double() * torch.rsqrt(total.double().pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    torch.testing.assert_close(normed.double(), exact, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), normed)
    gate, up = x.double().chunk(2, dim=-1)
    for activation, opened in (
        (Activation.SILU, F.silu(gate)),
        (Activation.GELU_TANH, F.gelu(gate, approximate="tanh")),
    ):
        found = kernels.activate_mul(x, activation).double()
        torch.testing.assert_close(found, opened * up, atol=tolerance, rtol=tolerance)
    wide, bias = torch.randn(7, 16).to(dtype), torch.randn(7).to(dtype)
    wanted = x.double() @ wide.double().T + bias.double()
    found = kernels.pack(PlainWeight(wide)).linear(x, bias).double()
    torch.testing.assert_close(found, wanted, atol=4 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
def test_the_first_heads_are_normalized_each_by_itself(form: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    qkv, weight = torch.randn(5, 7, 16).to(dtype), torch.randn(4, 16)
    wide = qkv[:, :4].double()
    exact = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    values = qkv[:, 4:].clone()
    make_kernels(form, dtype).norm_heads(qkv, weight, 1e-5)
    torch.testing.assert_close(qkv[:, :4].double(), exact, atol=tolerance, rtol=tolerance)
    assert torch.equal(qkv[:, 4:], values)


def rows_of_many_sizes(num_columns: int, dtype: torch.dtype) -> Tensor:
    """Rows of numbers of both signs, from subnormal to huge ones, in any order."""
    sizes = 2 ** torch.linspace(-130, 120, num_columns, dtype=torch.float64)
    signs = torch.tensor([-1.0, 1.0]).repeat(num_columns)[:num_columns]
    return torch.stack([(sizes * signs)[torch.randperm(num_columns)] for _ in range(6)]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_columns", [1, 2, 700, 3000])
@pytest.mark.parametrize("form", FORMS)
def test_the_likeliest_is_the_highest_of_a_finite_row(form: str, num_columns: int, dtype: torch.dtype) -> None:
    mixed = rows_of_many_sizes(num_columns, dtype)
    for logits in (mixed, -mixed, mixed.abs(), -mixed.abs()):
        places = torch.tensor(make_kernels(form, dtype).likeliest(logits))
        assert torch.equal(logits.gather(1, places.unsqueeze(1)).squeeze(1), logits.amax(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("broken", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_not_finite_has_no_likeliest(form: str, broken: float, dtype: torch.dtype) -> None:
    kernels = make_kernels(form, dtype)
    logits = torch.randn(4, 2000).to(dtype)
    logits[1, 0] = logits[2, 1500] = logits[3, -1] = broken
    assert kernels.likeliest(logits) == [int(logits[0].argmax()), None, None, None]
