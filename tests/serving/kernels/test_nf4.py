"""NF4 against bitsandbytes: adapters are served on exactly the weights that they were trained on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lorafleet_serving.kernels.nf4 import nf4_blocks

FORMATS = (torch.bfloat16, torch.float32)


def heavy_tailed(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape) * torch.randn(shape).exp()


def on_the_borders(shape: tuple[int, ...]) -> Tensor:
    """Few values, so that scaled ones fall between two levels, and blocks of zeros."""
    return torch.randint(-4, 5, shape).float() * (torch.arange(shape[0]) % 3).unsqueeze(1)


def of_bitsandbytes(weight: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    found: Tensor = dequantize_4bit(*quantize_4bit(weight, compress_statistics=True, quant_type="nf4"))
    return found


@pytest.mark.parametrize("draw", [torch.randn, heavy_tailed, on_the_borders, torch.zeros])
@pytest.mark.parametrize("dtype", FORMATS)
# One block, more than one block of scales, and (odd, where bitsandbytes takes another way) blocks across rows.
@pytest.mark.parametrize("shape", [(1, 64), (576, 576), (70, 640), (7, 33), (131, 257)])
def test_values_are_those_of_bitsandbytes(
    draw: Callable[[tuple[int, ...]], Tensor], dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    weight = (0.05 * draw(shape)).to(dtype)
    assert torch.equal(nf4_blocks(weight).values(weight), of_bitsandbytes(weight))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(broken: float) -> None:
    weight = torch.randn(4, 64)
    weight[2, 5] = broken
    assert not torch.isfinite(nf4_blocks(weight).values(weight)[2]).all()
