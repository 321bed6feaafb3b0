"""Feed-forward layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.operators import Activation, Kernels
from lorafleet_serving.layers.linear import LoraLinear


class GatedMlp:
    """down(activation(gate(x)) * up(x)), gate and up merged."""

    def __init__(self, gate_up: LoraLinear, down: LoraLinear, activation: Activation, kernels: Kernels) -> None:
        self.gate_up = gate_up
        self.down = down
        self.activation = activation
        self._kernels = kernels

    def __call__(self, x: Tensor, lora: Any) -> Tensor:
        """Map [num_tokens, hidden_size] to the same shape."""
        return self.down(self._kernels.activate_mul(self.gate_up(x, lora), self.activation), lora)


class GeluMlp:
    """down(gelu(up(x))), GELU by its tanh approximation."""

    def __init__(self, up: LoraLinear, down: LoraLinear) -> None:
        self._up = up
        self._down = down

    def __call__(self, x: Tensor, lora: Any) -> Tensor:
        """Map [num_tokens, hidden_size] to the same shape."""
        return self._down(F.gelu(self._up(x, lora), approximate="tanh"), lora)
