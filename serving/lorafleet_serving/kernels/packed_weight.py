"""Weights of linear layers, ready to be multiplied by."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F


class PackedWeight(Protocol):
    """The weight of a linear layer in the layout that its own product reads fastest."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W.T + b: [num_rows, in_features], contiguous, to [num_rows, out_features]."""
        ...


class DenseWeight(NamedTuple):
    """[out_features, in_features], multiplied by torch."""

    values: Tensor

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """One matrix product."""
        return F.linear(x, self.values, bias)
