"""Self-attention over a paged KV cache, with grouped key heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.kernels.operators import Kernels, Rotation
from lorafleet_serving.layers.linear import LoraLinear


class Attention:
    """Merged projection of queries, keys and values, rotation, paged attention, output projection."""

    def __init__(self, qkv: LoraLinear, output: LoraLinear, head_dim: int, kernels: Kernels) -> None:
        self._qkv = qkv
        self._output = output
        self._head_dim = head_dim
        self._kernels = kernels

    def __call__(self, x: Tensor, rotation: Rotation, cache: LayerCache, plan: Any, lora: Any) -> Tensor:
        """Map [num_tokens, hidden_size] to the same shape; writes the step's keys and values into the cache."""
        qkv = self._qkv(x, lora).view(x.shape[0], -1, self._head_dim)
        self._kernels.rotate_and_store(qkv, rotation, cache, plan)
        return self._output(self._kernels.paged_attention(qkv, cache, plan, self._head_dim**-0.5), lora)
