"""DoRA, reduced to one gain and one offset per output.

S.-Y. Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (2024). A module computes
m / |W + B A| * (W + B A) x, the length taken row by row, plus the bias as it is. The gain g = m / |W + B A| does not
depend on x, so that y = g * (W x + bias + B A x) + (1 - g) * bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lorafleet_serving.exceptions import AdapterRefusal
from lorafleet_serving.kernels.lora_weights import LoraSlice, LoraWeights, Rescale
from lorafleet_serving.layers.linear import LoraLinear

Project = Callable[[LoraLinear, Tensor], Tensor]
"""`LoraLinear.project`, which only the thread of the base model's kernels may call: another hands it over."""


class Magnitudes(NamedTuple):
    """What DoRA learned of a module, m."""

    name: str
    """For errors."""
    values: Tensor
    """[out_features]"""


def rescaled(site: LoraWeights, magnitudes: Sequence[Magnitudes], linear: LoraLinear, project: Project) -> LoraWeights:
    """The weights at a site, with gain and offset of each module.

    Args:
        site: with scaled B.
        magnitudes: by slice of the site.
        linear: the base model's layer.
        project: the layer's product.

    Raises:
        AdapterRefusal: a magnitude is not finite, or a row has no length.
    """
    # Of all modules in one product, which reads the weight that they share once.
    projected = project(linear, site.a)
    slices = (
        part._replace(rescale=_rescale(learned, site.a, part, projected, linear))
        for part, learned in zip(site.slices, magnitudes, strict=True)
    )
    return LoraWeights(site.a, tuple(slices))


def _rescale(magnitudes: Magnitudes, a: Tensor, part: LoraSlice, projected: Tensor, linear: LoraLinear) -> Rescale:
    outputs, ranks = slice(part.out_start, part.out_end), slice(part.rank_start, part.rank_end)
    b = part.b.to(projected.device).float()
    # |W + B A|^2 = |W|^2 + 2 W.(B A) + |B A|^2 by row, without ever making the matrices.
    crossed = (b * projected[ranks, outputs].t()).sum(1)
    wide = a[ranks].to(b.device).float()
    squared = linear.row_norms[outputs].square() + 2 * crossed + ((b @ (wide @ wide.t())) * b).sum(1)
    gain = magnitudes.values.to(b.device).float() / squared.sqrt()
    if not bool(torch.isfinite(gain).all()):
        raise AdapterRefusal(f"adapter tensor {magnitudes.name} gives factors that are not finite")
    bias = torch.zeros_like(gain) if linear.bias is None else linear.bias[outputs].float()
    return Rescale(gain.to(a.device), ((1 - gain) * bias).to(a.device))
