from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorafleet_serving.kernels.cpu.element import TAGS
from lorafleet_serving.kernels.cpu.norm import add_rms_norm, rms_norm

EPS = 1e-5


def exact(x: Tensor, weight: Tensor) -> Tensor:
    return x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + EPS) * weight.double()


@pytest.mark.parametrize("dtype", TAGS)
@pytest.mark.parametrize("shape", [(1, 576), (33, 40), (3, 7)])
def test_rows_are_normalized_with_statistics_in_fp32(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = (3 * torch.randn(shape)).to(dtype), torch.randn(shape[1])
    out = torch.empty_like(x)
    rms_norm(TAGS[dtype], x.data_ptr(), weight.data_ptr(), out.data_ptr(), *shape, EPS)
    torch.testing.assert_close(out, exact(x, weight).to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", TAGS)
def test_the_residual_is_added_in_place_and_then_normalized(dtype: torch.dtype) -> None:
    x, delta, weight = torch.randn(9, 40).to(dtype), torch.randn(9, 40).to(dtype), torch.randn(40)
    wanted, out = x + delta, torch.empty_like(x)
    add_rms_norm(TAGS[dtype], x.data_ptr(), delta.data_ptr(), weight.data_ptr(), out.data_ptr(), 9, 40, EPS)
    assert torch.equal(x, wanted)
    torch.testing.assert_close(out, exact(wanted, weight).to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    x, weight = torch.randn(3, 40), torch.ones(40)
    x[1, 5] = float("nan")
    out = torch.empty_like(x)
    rms_norm(TAGS[torch.float32], x.data_ptr(), weight.data_ptr(), out.data_ptr(), 3, 40, EPS)
    assert torch.isfinite(out).all(dim=1).tolist() == [True, False, True]
