"""Linear layer to which adapters attach, and which may stand for several merged modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorafleet_serving.kernels.operators import Kernels
from lorafleet_serving.layers.lora_site import LoraSite


class LoraLinear:
    """y = x W.T + b, and for rows with an adapter + x A.T B.T."""

    def __init__(self, weight: Tensor, bias: Tensor | None, site: LoraSite, kernels: Kernels) -> None:
        self._packed = kernels.pack(weight)  # [sum of out_features, in_features]
        self._dtype, self._device = weight.dtype, weight.device
        self.row_norms = row_norms(weight)
        """Lengths of the rows of W, [sum of out_features], in fp32."""
        self.bias = bias  # [sum of out_features]
        self.site = site
        self._kernels = kernels

    def __call__(self, x: Tensor, lora: Any) -> Tensor:
        """Map [num_tokens, in_features] to [num_tokens, sum of out_features]."""
        y = self._kernels.linear(x, self._packed, self.bias)
        if lora is not None:
            self._kernels.add_lora(x, y, lora, self.site.index)
        return y

    def project(self, rows: Tensor) -> Tensor:
        """rows W.T in fp32, without bias: [num_rows, sum of out_features]."""
        return self._kernels.linear(rows.to(self._device, self._dtype), self._packed, None).float()


def row_norms(weight: Tensor) -> Tensor:
    """Lengths of the rows of [num_rows, num_columns], in fp32 whatever the format."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    return norms
