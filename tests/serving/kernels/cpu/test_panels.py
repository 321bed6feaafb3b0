"""Products of few rows with a weight that oneDNN has packed, against plain torch."""

from __future__ import annotations

import pytest
import torch

from lorafleet_serving.kernels.cpu.lanes import HAS_PAIR_PRODUCTS
from lorafleet_serving.kernels.cpu.packed import OneDnnWeight
from lorafleet_serving.kernels.cpu.panels import address_of

needs_pair_products = pytest.mark.skipif(not HAS_PAIR_PRODUCTS, reason="this processor has no pair products")
needs_onednn = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN packs no bf16 on this processor"
)


@needs_pair_products
@pytest.mark.parametrize(("out_features", "in_features"), [(64, 64), (192, 96), (320, 576)])
@pytest.mark.parametrize("num_rows", [1, 3, 4])
@pytest.mark.parametrize("is_biased", [False, True])
def test_few_rows_are_multiplied_as_torch_does(
    out_features: int, in_features: int, num_rows: int, is_biased: bool
) -> None:
    weight = (0.2 * torch.randn(out_features, in_features)).bfloat16()
    bias = torch.randn(out_features).bfloat16() if is_biased else None
    packed = OneDnnWeight.of(weight)
    assert packed.few_rows is not None
    x = torch.randn(num_rows, in_features).bfloat16()
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    # Half a unit in the last of eight bits, and what fp32 sums lose.
    torch.testing.assert_close(packed.linear(x, bias).double(), exact, rtol=2**-8 + 1e-5, atol=1e-4)


@needs_pair_products
def test_a_row_is_the_same_whatever_rows_stand_beside_it() -> None:
    packed = OneDnnWeight.of(torch.randn(192, 96).bfloat16())
    x = torch.randn(4, 96).bfloat16()
    alone = torch.cat([packed.linear(row.unsqueeze(0), None) for row in x])
    assert torch.equal(packed.linear(x, None), alone)


@needs_pair_products
def test_what_is_not_finite_stays_so() -> None:
    packed = OneDnnWeight.of(torch.randn(64, 64).bfloat16())
    x = torch.randn(4, 64).bfloat16()
    x[1, 3], x[2, 0] = float("nan"), float("inf")
    assert torch.isfinite(packed.linear(x, None)).all(dim=1).tolist() == [True, False, False, True]


@needs_onednn
@pytest.mark.parametrize(("out_features", "in_features"), [(100, 64), (72, 40), (192, 72), (64, 63)])
def test_a_shape_that_does_not_lie_in_panels_is_left_to_onednn(out_features: int, in_features: int) -> None:
    weight = torch.randn(out_features, in_features).bfloat16()
    packed = OneDnnWeight.of(weight)
    assert packed.few_rows is None
    x = torch.randn(2, in_features).bfloat16()
    torch.testing.assert_close(packed.linear(x, None), torch.nn.functional.linear(x, weight), rtol=2e-2, atol=2e-1)


@needs_onednn
def test_another_layout_is_noticed() -> None:
    weight, other = torch.randn(128, 64).bfloat16(), torch.randn(128, 64).bfloat16()
    other[:64] = weight[:64]
    assert address_of(OneDnnWeight.of(other).packed, weight) == 0
