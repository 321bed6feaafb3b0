"""LoRA of mixed adapters against plain torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from lorafleet_serving.kernels.cpu.element import TAGS
from lorafleet_serving.kernels.cpu.kernels import CpuKernels
from lorafleet_serving.kernels.cpu.lanes import HAS_PAIR_PRODUCTS
from lorafleet_serving.kernels.cpu.lora import add_lora, units_of
from lorafleet_serving.kernels.lora_table import address_table
from lorafleet_serving.kernels.lora_weights import LoraSlice, LoraWeights, PackedLora, Rescale
from lorafleet_serving.kernels.reference import add_segment
from lorafleet_serving.kernels.segments import LoraRun, LoraSegment
from tests.serving.kernels.test_operators import Adapter

IN_FEATURES = 72
OUT_FEATURES = (80, 24, 32)
"""Widths of whole vectors and a rest, of a rest alone, and of whole vectors alone; the inputs leave a rest."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}


def make_weights(ranks: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> LoraWeights | None:
    """An adapter at a site of three merged modules; rank 0 leaves a module alone."""
    generator = torch.Generator().manual_seed(seed)
    slices = []
    rank_start = out_start = 0
    for rank, out_features in zip(ranks, OUT_FEATURES, strict=True):
        b = torch.randn(rank, out_features, generator=generator).to(dtype)
        if rank:
            slices.append(LoraSlice(out_start, out_start + out_features, rank_start, rank_start + rank, b.t()))
        rank_start, out_start = rank_start + rank, out_start + out_features
    a = 0.2 * torch.randn(rank_start, IN_FEATURES, generator=generator)
    return LoraWeights(a.to(dtype), tuple(slices)) if slices else None


def make_rescaled(ranks: Sequence[int], dtype: torch.dtype) -> LoraWeights:
    """The same, two of its modules rescaled."""
    weights = make_weights(ranks, dtype)
    assert weights is not None
    slices = [
        part._replace(rescale=Rescale(torch.rand(part.b.shape[0]) + 0.5, torch.randn(part.b.shape[0])))
        for part in weights.slices[:2]
    ]
    return LoraWeights(weights.a, (*slices, *weights.slices[2:]))


def pack(dtype: torch.dtype, sites: Sequence[LoraWeights | None]) -> Sequence[PackedLora | None]:
    return CpuKernels(dtype).pack_lora(sites, sum(site.num_elements for site in sites if site is not None))


def run_lora(x: Tensor, y: Tensor, runs: Sequence[tuple[int, int, LoraWeights | None]]) -> None:
    packed = pack(x.dtype, [weights for _, _, weights in runs])
    table = np.concatenate([address_table([weights]).rows for weights in packed])
    units = units_of([(start, end) for start, end, _ in runs])
    add_lora(TAGS[x.dtype], x.data_ptr(), y.data_ptr(), x.shape[1], y.shape[1], units, table)


def expected_lora(x: Tensor, y: Tensor, runs: Sequence[tuple[int, int, LoraWeights | None]]) -> Tensor:
    wanted = y.clone()
    for start, end, weights in runs:
        if weights is not None:
            add_segment(x, wanted, LoraSegment(start, end, weights))
    return wanted


ranks = st.tuples(*[st.sampled_from([0, 1, 2, 3, 4, 5, 8, 17])] * 3)


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 19), ranks), min_size=1, max_size=6),
    dtype=st.sampled_from(list(TAGS)),
    gap=st.integers(0, 3),
)
def test_every_mixture_of_ranks_rows_and_modules_is_as_in_torch(
    shapes: list[tuple[int, tuple[int, int, int]]], dtype: torch.dtype, gap: int
) -> None:
    runs = []
    end = gap  # Rows of the base model stand in front.
    for number, (num_rows, adapter_ranks) in enumerate(shapes):
        runs.append((end, end + num_rows, make_weights(adapter_ranks, dtype, number)))
        end += num_rows
    x, y = torch.randn(end, IN_FEATURES).to(dtype), torch.randn(end, sum(OUT_FEATURES)).to(dtype)
    wanted = expected_lora(x.float(), y.float(), [(s, e, _in_fp32(w)) for s, e, w in runs])
    before = y.clone()
    run_lora(x, y, runs)
    torch.testing.assert_close(y.float(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert torch.equal(y[:gap], before[:gap])


@pytest.mark.parametrize("dtype", list(TAGS))
def test_outputs_are_rescaled_with_the_adapter(dtype: torch.dtype) -> None:
    weights = make_rescaled((3, 8, 1), dtype)
    x, y = torch.randn(7, IN_FEATURES).to(dtype), torch.randn(7, sum(OUT_FEATURES)).to(dtype)
    wanted = expected_lora(x.float(), y.float(), [(0, 7, _in_fp32(weights))])
    run_lora(x, y, [(0, 7, weights)])
    torch.testing.assert_close(y.float(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("rank", [64, 256])
def test_large_ranks_are_rounded_once(rank: int) -> None:
    weights = make_weights((rank, 0, 0), torch.bfloat16)
    x, y = torch.randn(5, IN_FEATURES).bfloat16(), torch.randn(5, sum(OUT_FEATURES)).bfloat16()
    exact = expected_lora(x.float(), y.float(), [(0, 5, _in_fp32(weights))])
    run_lora(x, y, [(0, 5, weights)])
    # Half a unit in the last of eight bits, and what fp32 sums in another order.
    torch.testing.assert_close(y.float(), exact, rtol=2**-8 + 1e-5, atol=1e-4)


@pytest.mark.parametrize("is_rescaled", [False, True])
def test_a_run_that_is_left_to_torch_is_written_out_first(is_rescaled: bool) -> None:
    kernels = CpuKernels(torch.bfloat16)
    ranks, num_rows = (64, 63, 64), 1100
    weights = make_rescaled(ranks, torch.bfloat16) if is_rescaled else make_weights(ranks, torch.bfloat16)
    x, y = torch.randn(num_rows, IN_FEATURES).bfloat16(), torch.randn(num_rows, sum(OUT_FEATURES)).bfloat16()
    exact = expected_lora(x.float(), y.float(), [(0, num_rows, _in_fp32(weights))])
    plan = kernels.plan_lora([LoraRun(0, num_rows, Adapter(tuple(pack(torch.bfloat16, [weights]))))])
    assert plan.long_runs
    assert not plan.units.shape[0]
    kernels.add_lora(x, y, plan, 0)
    # Torch rounds x A.T, and of sums of 64 products of it those before they are rescaled.
    torch.testing.assert_close(y.float(), exact, rtol=2**-6, atol=2**-2)


@pytest.mark.skipif(not HAS_PAIR_PRODUCTS, reason="without pair products all weights lie alike")
@pytest.mark.parametrize(("dtype", "is_packed"), [(torch.bfloat16, False), (torch.float32, True)])
def test_weights_that_lie_as_other_kernels_read_them_are_refused(dtype: torch.dtype, is_packed: bool) -> None:
    sites: Sequence[PackedLora | None] = [None, make_weights((8, 8, 8), torch.bfloat16)]
    if is_packed:
        sites = pack(torch.bfloat16, [site.dense() if site else None for site in sites])
    with pytest.raises(AssertionError, match="pack_lora"):
        CpuKernels(dtype).plan_lora([LoraRun(0, 1, Adapter(tuple(sites)))])


@pytest.mark.parametrize("dtype", list(TAGS))
def test_an_adapter_of_no_site_lies_in_any_order(dtype: torch.dtype) -> None:
    assert CpuKernels(dtype).plan_lora([LoraRun(0, 1, Adapter((None, None)))]).tables.shape[:2] == (2, 1)


def test_what_is_not_finite_stays_so() -> None:
    x, y = torch.randn(4, IN_FEATURES).bfloat16(), torch.zeros(4, sum(OUT_FEATURES)).bfloat16()
    x[1, 3], x[2, 0] = float("nan"), float("inf")
    run_lora(x, y, [(0, 4, make_weights((8, 8, 8), torch.bfloat16))])
    assert torch.isfinite(y).all(dim=1).tolist() == [True, False, False, True]


@pytest.mark.skipif(not HAS_PAIR_PRODUCTS, reason="without pair products, sums are taken by blocks of rows")
@pytest.mark.parametrize("num_ranks", [1, 8, 13])
def test_a_row_is_the_same_whatever_rows_stand_beside_it(num_ranks: int) -> None:
    weights = make_weights((num_ranks, num_ranks, num_ranks), torch.bfloat16)
    x, y = torch.randn(80, IN_FEATURES).bfloat16(), torch.randn(80, sum(OUT_FEATURES)).bfloat16()
    alone = y.clone()
    for row in range(80):
        run_lora(x[row : row + 1], alone[row : row + 1], [(0, 1, weights)])
    for first, last in ((0, 80), (0, 71), (1, 14), (0, 8), (0, 7), (3, 6)):
        together = y.clone()
        run_lora(x, together, [(first, last, weights)])
        assert torch.equal(together[first:last], alone[first:last])


def test_nothing_to_add_changes_no_element() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    width = sum(OUT_FEATURES)
    normal = every[torch.isfinite(every) & (every.abs() >= torch.finfo(torch.bfloat16).tiny)]
    y = normal[: normal.numel() // width * width].reshape(-1, width).clone()
    wanted = y.clone()
    run_lora(
        torch.zeros(y.shape[0], IN_FEATURES).bfloat16(), y, [(0, y.shape[0], make_weights((8, 8, 8), torch.bfloat16))]
    )
    assert torch.equal(y, wanted)


_ELSEWHERE = """
import pytest, sys
from lorafleet_serving.kernels.cpu.kernels import CpuKernels
from lorafleet_serving.kernels.cpu.lanes import HAS_PAIR_PRODUCTS
assert not HAS_PAIR_PRODUCTS
chosen = "large_ranks or not_finite or nothing_to_add"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", chosen, sys.argv[1]]))
"""


@pytest.mark.skipif(not HAS_PAIR_PRODUCTS, reason="the other tests compute without pair products here")
def test_a_processor_without_pair_products_computes_the_same(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-c", _ELSEWHERE, __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def _in_fp32(weights: LoraWeights | None) -> LoraWeights | None:
    if weights is None:
        return None
    slices = tuple(part._replace(b=part.b.t().float().contiguous().t()) for part in weights.slices)
    return LoraWeights(weights.a.float(), slices)
