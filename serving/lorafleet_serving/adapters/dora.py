"""DoRA, reduced to one gain and one offset per output.

S.-Y. Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (2024). A module computes
m / |W + B A| * (W + B A) x, the length taken row by row, plus the bias as it is. The gain g = m / |W + B A| does not
depend on x, so that y = g * (W x + bias + B A x) + (1 - g) * bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorafleet_serving.exceptions import AdapterRefusal
from lorafleet_serving.kernels.lora_weights import LoraSlice, Rescale
from lorafleet_serving.layers.linear import LoraLinear


def rescale(name: str, magnitudes: Tensor, a: Tensor, part: LoraSlice, linear: LoraLinear) -> Rescale:
    """Gain and offset of a module.

    Args:
        name: name of the magnitudes, for errors.
        magnitudes: m, [out_features].
        a: A of the module, [rank, in_features].
        part: the module's slice of the site, with its scaled B.
        linear: the base model's layer.

    Raises:
        AdapterRefusal: a magnitude is not finite, or a row has no length.
    """
    outputs = slice(part.out_start, part.out_end)
    b = part.b.to(linear.row_norms.device).float()
    # |W + B A|^2 = |W|^2 + 2 W.(B A) + |B A|^2 by row, without ever making the matrices.
    crossed = (b * linear.project(a)[:, outputs].t()).sum(1)
    wide = a.to(b.device).float()
    squared = linear.row_norms[outputs].square() + 2 * crossed + ((b @ (wide @ wide.t())) * b).sum(1)
    gain = magnitudes.to(b.device).float() / squared.sqrt()
    if not bool(torch.isfinite(gain).all()):
        raise AdapterRefusal(f"adapter tensor {name} gives factors that are not finite")
    bias = torch.zeros_like(gain) if linear.bias is None else linear.bias[outputs].float()
    return Rescale(gain.to(a.device), ((1 - gain) * bias).to(a.device))
