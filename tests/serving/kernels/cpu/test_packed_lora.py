"""Adapters in panels, and written out again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lorafleet_serving.kernels.cpu.packed_lora import LoraPanels, pack_sites
from lorafleet_serving.kernels.lora_weights import LoraSlice, LoraWeights, Rescale

CPU = torch.device("cpu")


def make_site(in_features: int, shapes: list[tuple[int, int]], *, is_rescaled: bool = False) -> LoraWeights:
    """A of random values, and a slice of each rank and width, behind a gap of one output."""
    slices, rank_start, out_start = [], 0, 0
    for rank, num_outs in shapes:
        rescale = Rescale(torch.randn(num_outs), torch.randn(num_outs)) if is_rescaled else None
        b = torch.randn(rank, num_outs).bfloat16().t()
        slices.append(LoraSlice(out_start + 1, out_start + 1 + num_outs, rank_start, rank_start + rank, b, rescale))
        rank_start, out_start = rank_start + rank, out_start + 1 + num_outs
    return LoraWeights(torch.randn(rank_start, in_features).bfloat16(), tuple(slices))


def pack(sites: Sequence[LoraWeights | None]) -> Sequence[LoraPanels | None]:
    return pack_sites(sites, sum(site.num_elements for site in sites if site is not None))


def assert_same(one: LoraWeights, other: LoraWeights) -> None:
    assert torch.equal(one.a, other.a)
    assert len(one.slices) == len(other.slices)
    for part, twin in zip(one.slices, other.slices, strict=True):
        assert part[:4] == twin[:4]
        assert torch.equal(part.b, twin.b)
        assert twin.b.t().is_contiguous()
        assert part.rescale is twin.rescale


shapes = st.lists(st.tuples(st.integers(1, 11), st.sampled_from([1, 31, 32, 40, 64, 96])), min_size=1, max_size=3)
sites = st.tuples(st.sampled_from([5, 32, 33, 96]), shapes, st.booleans())


@settings(deadline=None, max_examples=80)
@given(st.lists(sites | st.none(), max_size=4))
def test_what_is_packed_can_be_written_out_again(found: list[tuple[int, list[tuple[int, int]], bool] | None]) -> None:
    dense = [None if site is None else make_site(site[0], site[1], is_rescaled=site[2]) for site in found]
    for before, packed in zip(dense, pack(dense), strict=True):
        if before is None:
            assert packed is None
        else:
            assert packed is not None
            assert (packed.num_bytes, packed.num_ranks, packed.device) == (before.num_bytes, before.num_ranks, CPU)
            assert_same(before, packed.dense())


def test_all_sites_lie_in_one_piece_in_the_order_in_which_they_are_read() -> None:
    packed = [site for site in pack([make_site(64, [(4, 64)]), None, make_site(96, [(1, 32)])]) if site]
    first, second = packed
    assert first.lying.data_ptr() + first.lying.nbytes == second.lying.data_ptr()
    assert second.lying.untyped_storage().nbytes() == first.lying.nbytes + second.lying.nbytes


@pytest.mark.parametrize(("rank", "lines"), [(4, [0, 1, 2, 3]), (2, [0, 1])])
def test_ranks_that_are_multiplied_by_together_lie_side_by_side(rank: int, lines: list[int]) -> None:
    a = torch.arange(rank, dtype=torch.bfloat16).repeat_interleave(64).view(rank, 64)
    weights = LoraWeights(a, (LoraSlice(0, 32, 0, rank, torch.zeros(rank, 32, dtype=torch.bfloat16).t()),))
    (packed,) = pack([weights])
    assert isinstance(packed, LoraPanels)
    assert packed.lying[: 64 * rank].view(-1, 32)[:, 0].tolist() == lines * 2


def test_panels_that_leave_the_processor_are_written_out() -> None:
    weights = make_site(64, [(4, 64)])
    (packed,) = pack([weights])
    assert packed is not None
    assert packed.to(CPU) is packed
    assert packed.to(torch.device("meta")).num_bytes == weights.num_bytes
