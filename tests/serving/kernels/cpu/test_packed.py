"""What oneDNN multiplies, against plain torch, and the numbers of rows that it is asked for."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lorafleet_serving.kernels.cpu.packed import OneDnnWeight, rows_computed

needs_onednn = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN packs no bf16 on this processor"
)


def test_few_numbers_of_rows_stand_for_all() -> None:
    computed = [rows_computed(num_rows) for num_rows in range(8193)]
    assert all(num_rows <= more for num_rows, more in enumerate(computed))
    assert all(before <= after for before, after in pairwise(computed))
    assert all(more <= num_rows * 9 / 8 for num_rows, more in enumerate(computed))
    # Each up to 128, and eight for each power of two beyond.
    assert len(set(computed)) == 129 + 8 * 6


@needs_onednn
@pytest.mark.parametrize("num_rows", [0, 5, 8, 33, 130])
@pytest.mark.parametrize("is_biased", [False, True])
def test_just_the_asked_rows_come_back(num_rows: int, is_biased: bool) -> None:
    weight = (0.2 * torch.randn(192, 96)).bfloat16()
    bias = torch.randn(192).bfloat16() if is_biased else None
    x = torch.randn(num_rows, 96).bfloat16()
    y = OneDnnWeight.of(weight).linear(x, bias)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert y.is_contiguous()
    # Half a unit in the last of eight bits, and what fp32 sums lose.
    torch.testing.assert_close(y.double(), exact, rtol=2**-8 + 1e-5, atol=1e-4)
