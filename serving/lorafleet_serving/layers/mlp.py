"""Gated feed-forward layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lorafleet_serving.kernels.operators import Kernels
from lorafleet_serving.layers.linear import LoraLinear


class GatedMlp:
    """down(silu(gate(x)) * up(x)), gate and up merged."""

    def __init__(self, gate_up: LoraLinear, down: LoraLinear, kernels: Kernels) -> None:
        self._gate_up = gate_up
        self._down = down
        self._kernels = kernels

    def __call__(self, x: Tensor, lora: Any) -> Tensor:
        """Map [num_tokens, hidden_size] to the same shape."""
        return self._down(self._kernels.silu_mul(self._gate_up(x, lora)), lora)
