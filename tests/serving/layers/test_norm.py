from __future__ import annotations

import torch

from lorafleet_serving.layers.norm import RmsNorm
from tests.serving.kernels.forms import make_kernels


def test_rows_get_unit_scale_times_the_weight() -> None:
    x = torch.randn(4, 16) * 50
    weight = torch.rand(16) + 0.5
    rms = (RmsNorm(weight, 1e-6, make_kernels("reference"))(x) / weight).pow(2).mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones(4))


def test_statistics_are_fp32_in_bf16() -> None:
    x = torch.full((1, 1024), 300.0, dtype=torch.bfloat16)
    normed = RmsNorm(torch.ones(1024, dtype=torch.bfloat16), 1e-6, make_kernels("reference"))(x)
    assert normed.dtype is torch.bfloat16
    torch.testing.assert_close(normed, torch.ones_like(x))
