"""Root-mean-square normalization."""

from __future__ import annotations

import torch
from torch import Tensor


class RmsNorm:
    """weight * x / rms(x), with the statistics in fp32 whatever the model's format."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight  # [hidden_size]
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)
        return self._weight * wide.to(x.dtype)
