"""Linear layer to which adapters attach, and which may stand for several merged modules."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.dispatch import Kernels
from lorafleet_serving.kernels.segments import LoraBatch
from lorafleet_serving.layers.lora_site import LoraSite


class LoraLinear:
    """y = x W.T + b, and for rows with an adapter + x A.T B.T."""

    def __init__(self, weight: Tensor, bias: Tensor | None, site: LoraSite, kernels: Kernels) -> None:
        self.weight = weight  # [sum of out_features, in_features]
        self.bias = bias  # [sum of out_features]
        self.site = site
        self._kernels = kernels

    def __call__(self, x: Tensor, lora: LoraBatch | None) -> Tensor:
        """Map [num_tokens, in_features] to [num_tokens, sum of out_features]."""
        y = F.linear(x, self.weight, self.bias)
        if lora is not None and (segments := lora[self.site.index]):
            self._kernels.sgmv_expand(y, self._kernels.sgmv_shrink(x, segments), segments)
        return y
