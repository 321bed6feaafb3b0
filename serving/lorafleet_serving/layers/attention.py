"""Self-attention over a paged KV cache, with grouped key heads."""

from __future__ import annotations

from torch import Tensor

from lorafleet_serving.kernels.attention_plan import AttentionPlan, LayerCache
from lorafleet_serving.kernels.dispatch import Kernels
from lorafleet_serving.kernels.segments import LoraBatch
from lorafleet_serving.layers.linear import LoraLinear
from lorafleet_serving.layers.rotary import Rotation, rotate


class Attention:
    """Merged projection of queries, keys and values, rotation, paged attention, output projection."""

    def __init__(self, qkv: LoraLinear, output: LoraLinear, head_dim: int, num_kv_heads: int, kernels: Kernels) -> None:
        self._qkv = qkv
        self._output = output
        self._head_dim = head_dim
        self._num_kv_heads = num_kv_heads
        self._kernels = kernels

    def __call__(
        self, x: Tensor, rotation: Rotation, cache: LayerCache, plan: AttentionPlan, lora: LoraBatch | None
    ) -> Tensor:
        """Map [num_tokens, hidden_size] to the same shape; writes the step's keys and values into the cache."""
        heads = self._qkv(x, lora).view(x.shape[0], -1, self._head_dim)
        num_heads = heads.shape[1] - 2 * self._num_kv_heads
        # Queries and keys lie side by side, so one rotation does both.
        rotated = rotate(heads[:, : num_heads + self._num_kv_heads], rotation)
        query, key = rotated[:, :num_heads], rotated[:, num_heads:]
        self._kernels.kv_store(cache, key, heads[:, num_heads + self._num_kv_heads :], plan.slot_mapping)
        attended = self._kernels.paged_attention(query, cache, plan, self._head_dim**-0.5)
        return self._output(attended.reshape(x.shape[0], -1), lora)
