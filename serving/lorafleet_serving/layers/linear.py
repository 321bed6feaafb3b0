"""Linear layer to which adapters attach, and which may stand for several merged modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorafleet_serving.kernels.operators import Kernels, LinearParts
from lorafleet_serving.kernels.weight_format import WeightFormat
from lorafleet_serving.kernels.weights import quantize
from lorafleet_serving.layers.lora_site import LoraSite


class LoraLinear:
    """y = x W.T + b, and for rows with an adapter + x A.T B.T."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        site: LoraSite,
        kernels: Kernels,
        form: WeightFormat = WeightFormat.MODEL,
    ) -> None:
        self._dtype, self._device = weight.dtype, weight.device
        served = quantize(weight, form, site.out_features)  # [sum of out_features, in_features]
        self._packed = kernels.pack(served)
        self.row_norms = row_norms(served.dense())
        """Lengths of the rows of W as it is served, [sum of out_features], in fp32."""
        self.bias = bias  # [sum of out_features]
        self.site = site
        self._kernels = kernels

    def __call__(self, x: Tensor, lora: Any) -> Tensor:
        """Map [num_tokens, in_features] to [num_tokens, sum of out_features]."""
        y = self._packed.linear(x, self.bias)
        if lora is not None:
            self._kernels.add_lora(x, y, lora, self.site.index)
        return y

    @property
    def parts(self) -> LinearParts:
        """What is read to compute it."""
        return LinearParts(self._packed, self.bias, self.site.index, self.site.in_features, sum(self.site.out_features))

    def project(self, rows: Tensor) -> Tensor:
        """rows W.T in fp32, without bias: [num_rows, sum of out_features]."""
        return self._packed.linear(rows.to(self._device, self._dtype).contiguous(), None).float()


def row_norms(weight: Tensor) -> Tensor:
    """Lengths of the rows of [num_rows, num_columns], in fp32 whatever the format."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    return norms
