from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lorafleet_serving.kernels.cpu.element import TAGS
from lorafleet_serving.kernels.cpu.gate import activate_mul


@pytest.mark.parametrize("is_gelu", [False, True])
@pytest.mark.parametrize("dtype", TAGS)
def test_the_gate_lets_through_as_in_torch(dtype: torch.dtype, is_gelu: bool) -> None:
    gate_up = (8 * torch.randn(5, 86)).to(dtype)
    gate_up[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -88.0])
    out = torch.empty(5, 43, dtype=dtype)
    activate_mul(TAGS[dtype], is_gelu, gate_up.data_ptr(), out.data_ptr(), 5, 43)
    gate, up = gate_up.float().chunk(2, dim=-1)
    wanted = (F.gelu(gate, approximate="tanh") if is_gelu else F.silu(gate)) * up
    torch.testing.assert_close(out, wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
