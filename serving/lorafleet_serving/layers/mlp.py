"""Gated feed-forward layer."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.segments import LoraBatch
from lorafleet_serving.layers.linear import LoraLinear


class GatedMlp:
    """down(silu(gate(x)) * up(x)), gate and up merged."""

    def __init__(self, gate_up: LoraLinear, down: LoraLinear) -> None:
        self._gate_up = gate_up
        self._down = down

    def __call__(self, x: Tensor, lora: LoraBatch | None) -> Tensor:
        """Map [num_tokens, hidden_size] to the same shape."""
        gate, up = self._gate_up(x, lora).chunk(2, dim=-1)
        return self._down(F.silu(gate) * up, lora)
