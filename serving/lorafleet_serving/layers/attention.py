"""Self-attention over a paged KV cache, with grouped key heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lorafleet_serving.kernels.geometry import LayerCache
from lorafleet_serving.kernels.operators import Kernels, Rotation
from lorafleet_serving.layers.linear import LoraLinear
from lorafleet_serving.layers.norm import HeadNorm


@dataclass
class Attention:
    """Merged projection of queries, keys and values, rotation, paged attention, output projection."""

    qkv: LoraLinear
    output: LoraLinear
    head_dim: int
    kernels: Kernels
    head_norm: HeadNorm | None = None

    def __call__(self, x: Tensor, rotation: Rotation, cache: LayerCache, plan: Any, lora: Any) -> Tensor:
        """Map [num_tokens, hidden_size] to the same shape; writes the step's keys and values into the cache."""
        qkv = self.qkv(x, lora).view(x.shape[0], -1, self.head_dim)
        if self.head_norm is not None:
            self.head_norm.apply(qkv, self.kernels)
        self.kernels.rotate_and_store(qkv, rotation, cache, plan)
        return self.output(self.kernels.paged_attention(qkv, cache, plan, self.head_dim**-0.5), lora)
