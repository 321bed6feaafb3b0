from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorafleet_serving.kernels.nf4 import Nf4Weight
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.kernels.weights import (
    INT4_GROUP_SIZE,
    INT8_GROUP_SIZE,
    Int4Weight,
    Int8Weight,
    PlainWeight,
    Weight,
    quantize,
)
from tests.serving.kernels.forms import FORMS, make_kernels

FORMATS = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
QUANTIZED = (WeightFormat.INT8, WeightFormat.INT4, WeightFormat.NF4)
SHAPES = [(1, 1), (7, 33), (16, 32), (33, 128), (48, 80), (96, 192)]
NUM_ROWS = (0, 1, 2, 3, 4, 5, 33)


def served(weight: Tensor, form: WeightFormat) -> Weight:
    return quantize(weight, form, (weight.shape[0],))


@pytest.mark.parametrize("kernels", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("form", WeightFormat)
def test_products_are_those_of_the_weight_that_is_served(
    form: WeightFormat, dtype: torch.dtype, tolerance: float, shape: tuple[int, int], kernels: str
) -> None:
    torch.manual_seed(0)
    weight = served((torch.randn(shape) / shape[1] ** 0.5).to(dtype), form)
    packed, bias = make_kernels(kernels, dtype).pack(weight), torch.randn(shape[0]).to(dtype)
    for num_rows in NUM_ROWS:
        x = torch.randn(num_rows, shape[1]).to(dtype)
        product = x.double() @ weight.dense().double().T
        for offset in (None, bias):
            wanted = product if offset is None else product + offset.double()
            found = packed.linear(x, offset)
            assert found.dtype is dtype
            torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_inputs", [3 * INT8_GROUP_SIZE, 50])
def test_int8_is_off_by_half_a_step_of_its_group_at_most(num_inputs: int, dtype: torch.dtype) -> None:
    weight = (torch.randn(9, num_inputs) * torch.randn(9, num_inputs).exp()).to(dtype)
    weight[3] = 0
    groups = torch.split(weight.float(), INT8_GROUP_SIZE, dim=1)
    half_steps = torch.cat([(group.abs().amax(1, keepdim=True) / 254).expand_as(group) for group in groups], dim=1)
    found = served(weight, WeightFormat.INT8).dense()
    rounding = weight.float().abs() * torch.finfo(dtype).eps
    # Scales are rounded to bf16.
    assert ((found.float() - weight.float()).abs() <= half_steps * 1.004 + rounding).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_is_off_by_half_a_step_of_its_group_at_most(dtype: torch.dtype) -> None:
    groups = torch.randn(32, 3, INT4_GROUP_SIZE) + 3 * torch.randn(32, 3, 1)
    groups[5] = 0
    weight = groups.flatten(1).to(dtype)
    lowest, highest = weight.float().view(32, 3, -1).aminmax(dim=2, keepdim=True)
    # Scales and offsets are rounded to the format, and the ends of the range move with them.
    moved = 4 * torch.finfo(dtype).eps * torch.maximum(lowest.abs(), highest.abs())
    error = (served(weight, WeightFormat.INT4).dense().float() - weight.float()).view(32, 3, -1).abs()
    assert (error <= (highest - lowest) / 30 * 1.001 + moved).all()


def test_shapes_that_a_kernel_cannot_take_get_the_next_better_form() -> None:
    forms = {
        (16, 32): (Int4Weight, PlainWeight),
        (16, 64): (Int4Weight, Nf4Weight),
        (15, 64): (Int8Weight, Nf4Weight),
        (16, 40): (Int8Weight, PlainWeight),
    }
    for shape, (int4, nf4) in forms.items():
        assert isinstance(served(torch.randn(shape), WeightFormat.INT4), int4)
        assert isinstance(served(torch.randn(shape), WeightFormat.NF4), nf4)


@pytest.mark.parametrize("in_features", [128, 80])
def test_merged_modules_are_quantized_apart(in_features: int) -> None:
    modules = [torch.randn(rows, in_features) * scale for rows, scale in ((8, 1.0), (3, 20.0), (5, 0.01))]
    for form in WeightFormat:
        merged = quantize(torch.cat(modules), form, [module.shape[0] for module in modules]).dense()
        apart = torch.cat([quantize(module, form, (module.shape[0],)).dense() for module in modules])
        if form is not WeightFormat.INT4:  # What is merged may have a shape that its parts have not.
            assert torch.equal(merged, apart)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", QUANTIZED)
def test_weights_that_are_not_finite_are_not_hidden(form: WeightFormat, broken: float) -> None:
    weight = torch.randn(16, 64)
    weight[2, 5] = broken
    packed = make_kernels("cpu").pack(served(weight, form))
    for num_rows in (1, 8):
        assert not torch.isfinite(packed.linear(torch.randn(num_rows, 64), None)[:, 2]).any()


def test_the_output_head_keeps_more_bits() -> None:
    heads = {form: form.of_head for form in WeightFormat}
    assert heads == {
        WeightFormat.MODEL: WeightFormat.MODEL,
        WeightFormat.INT8: WeightFormat.INT8,
        WeightFormat.INT4: WeightFormat.INT8,
        WeightFormat.NF4: WeightFormat.MODEL,
    }
