from __future__ import annotations

import pytest
import torch

from lorafleet_serving.kernels.lora_weights import LoraSlice, LoraWeights
from lorafleet_serving.kernels.segments import LoraRun
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.kernels.weights import quantize
from lorafleet_serving.layers.linear import LoraLinear
from lorafleet_serving.layers.lora_site import LoraSite
from tests.serving.kernels.forms import make_kernels
from tests.serving.kernels.test_operators import Adapter

KERNELS = make_kernels("reference")


def make_linear(bias: torch.Tensor | None = None) -> LoraLinear:
    torch.manual_seed(0)
    site = LoraSite(index=1, prefix="mlp", modules=("gate", "up"), in_features=6, out_features=(4, 3))
    return LoraLinear(torch.randn(7, 6), bias, site, KERNELS)


def test_rows_without_adapter_are_the_base_models() -> None:
    linear, x = make_linear(), torch.randn(5, 6)
    a, b = torch.randn(2, 6), torch.randn(2, 3).t()
    adapter = Adapter((None, LoraWeights(a, (LoraSlice(4, 7, 0, 2, b),))))
    y = linear(x, KERNELS.plan_lora([LoraRun(1, 3, adapter)]))
    base = linear(x, None)
    expected = base.clone()
    expected[1:3, 4:7] += x[1:3] @ a.T @ b.T
    torch.testing.assert_close(y, expected)
    assert torch.equal(y[[0, 3, 4]], base[[0, 3, 4]])


def test_site_that_no_adapter_touches_is_the_base_models() -> None:
    linear, x = make_linear(), torch.randn(5, 6)
    assert torch.equal(linear(x, KERNELS.plan_lora([LoraRun(0, 5, Adapter((None, None)))])), linear(x, None))


def test_bias_is_added() -> None:
    x = torch.randn(5, 6)
    torch.testing.assert_close(make_linear(torch.ones(7))(x, None), make_linear()(x, None) + 1)


@pytest.mark.parametrize("form", WeightFormat)
def test_norms_and_projections_are_those_of_the_weight_that_is_served(form: WeightFormat) -> None:
    torch.manual_seed(0)
    weight, site = torch.randn(48, 64), LoraSite(0, "mlp", ("gate", "up"), 64, (32, 16))
    linear, rows = LoraLinear(weight, torch.ones(48), site, make_kernels("cpu"), form), torch.randn(7, 64)
    served = quantize(weight, form, site.out_features).dense()
    torch.testing.assert_close(linear.row_norms, served.norm(dim=1))
    for num_rows in (2, 7):
        torch.testing.assert_close(linear.project(rows[:num_rows]), rows[:num_rows] @ served.T, atol=1e-4, rtol=1e-4)
