"""Root-mean-square normalization."""

from __future__ import annotations

from torch import Tensor

from lorafleet_serving.kernels.operators import Kernels


class RmsNorm:
    """weight * x / rms(x), with weight and statistics in fp32 whatever the model's format."""

    def __init__(self, weight: Tensor, eps: float, kernels: Kernels) -> None:
        self._weight = weight.float()  # [hidden_size]
        self._eps = eps
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize [num_rows, hidden_size]."""
        return self._kernels.rms_norm(x, self._weight, self._eps)

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """Add delta to x in place, and normalize the sum."""
        return self._kernels.add_rms_norm(x, delta, self._weight, self._eps)
