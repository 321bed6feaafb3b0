"""Normalizations."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.operators import Kernels


class Norm(Protocol):
    """What stands before the layers and behind the last."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize [num_rows, hidden_size]."""
        ...

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """Add delta to x in place, and normalize the sum."""
        ...


class RmsNorm:
    """weight * x / rms(x), with weight and statistics in fp32 whatever the model's format."""

    def __init__(self, weight: Tensor, eps: float, kernels: Kernels) -> None:
        self.weight = weight.float()  # [hidden_size]
        self.eps = eps
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize [num_rows, hidden_size]."""
        return self._kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """Add delta to x in place, and normalize the sum."""
        return self._kernels.add_rms_norm(x, delta, self.weight, self.eps)


class LayerNorm:
    """weight * (x - mean(x)) / std(x) + bias."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self._weight = weight  # [hidden_size]
        self._bias = bias  # [hidden_size]
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize [num_rows, hidden_size]."""
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """Add delta to x in place, and normalize the sum."""
        return self(x.add_(delta))


class HeadNorm:
    """Each query and each key head by its own root mean square, before they are rotated."""

    def __init__(self, query: Tensor, key: Tensor, num_heads: int, num_kv_heads: int, eps: float) -> None:
        # [num_heads + num_kv_heads, head_dim]
        self.weight = torch.cat((query.expand(num_heads, -1), key.expand(num_kv_heads, -1))).float()
        self.eps = eps

    def apply(self, qkv: Tensor, kernels: Kernels) -> None:
        """Normalize [num_tokens, num_heads + 2 * num_kv_heads, head_dim] in place; the values stay as they are."""
        kernels.norm_heads(qkv, self.weight, self.eps)
