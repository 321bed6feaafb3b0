"""4-bit NormalFloat with doubly quantized scales, equal to bitsandbytes' value for value.

T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023). A weight is cut into blocks of 64 along its
rows, one behind the other; each is divided by its largest magnitude and rounded to 16 levels, quantiles of the normal
distribution. The magnitudes of all blocks, less their mean, are rounded in turn, in blocks of 256, to the 256 levels
of an 8-bit number whose exponent has as many bits as it needs (T. Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", 2021).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_SIZE = 64
"""Weights that share a scale."""
_SCALE_BLOCK_SIZE = 256
"""Scales that share one of theirs."""
_GRID_STEPS = 65535
"""Between -1 and 1: bitsandbytes rounds a scale to this grid before it looks for the nearest level."""
_TINY = 1e-38

LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Values of the 16 codes."""


class Nf4Weight(NamedTuple):
    """W = scale of the block * level of the code, blocks along the inputs, which are a multiple of the block size."""

    codes: Tensor
    """[out_features, in_features] uint8, 0 to 15"""
    scales: Tensor
    """[out_features, in_features / BLOCK_SIZE] in fp32"""
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """The weight that is served."""
        blocks = torch.tensor(LEVELS)[self.codes.int()].view(*self.scales.shape, BLOCK_SIZE)
        return (blocks * self.scales.unsqueeze(-1)).flatten(1).to(self.dtype)


class Nf4Blocks(NamedTuple):
    """Blocks of one module, which may reach from one row into the next."""

    codes: Tensor
    """[num_blocks, BLOCK_SIZE] uint8, the last block filled up"""
    scales: Tensor
    """[num_blocks] in fp32"""

    def values(self, like: Tensor) -> Tensor:
        """The weight that they stand for, in the shape and format of the one they were made from."""
        flat = (torch.tensor(LEVELS)[self.codes.int()] * self.scales.unsqueeze(1)).flatten()[: like.numel()]
        return flat.view_as(like).to(like.dtype)


def nf4_blocks(weight: Tensor) -> Nf4Blocks:
    """Quantize the weight of one module."""
    flat = weight.flatten().float()
    rest = -flat.numel() % BLOCK_SIZE
    blocks = F.pad(flat, (0, rest)).view(-1, BLOCK_SIZE)
    scales = blocks.abs().amax(1)
    scaled = blocks * (1 / scales.clamp(min=_TINY)).unsqueeze(1)
    if rest:  # The other way round the last bit may differ.
        scaled[-1] = blocks[-1] / scales[-1].clamp(min=_TINY)
    levels = torch.tensor(LEVELS)
    codes = torch.bucketize(scaled.clamp(-1, 1), (levels[:-1] + levels[1:]) / 2, out_int32=True)
    return Nf4Blocks(codes.to(torch.uint8), rounded_scales(scales))


def rounded_scales(scales: Tensor) -> Tensor:
    """Scales, [num_blocks], as they are once they were quantized themselves."""
    offset = scales.mean()
    blocks = F.pad(scales - offset, (0, -scales.numel() % _SCALE_BLOCK_SIZE)).view(-1, _SCALE_BLOCK_SIZE)
    widest = blocks.abs().amax(1, keepdim=True)
    half = _GRID_STEPS / 2
    grid = ((blocks * (1 / widest) + 1) * half + 0.5).floor() / half - 1
    levels = _scale_levels()
    codes = torch.bucketize(grid.clamp(-1, 1), (levels[:-1] + levels[1:]) / 2)
    return (levels[codes] * widest).flatten()[: scales.numel()] + offset


@cache
def _scale_levels() -> Tensor:
    """Values of the 256 codes: the middles of 2 ** n equal parts of each decade, and 0 and 1."""
    levels = [torch.tensor([0.0, 1.0])]
    for bits in range(7):
        borders = torch.linspace(0.1, 1, 2**bits + 1)
        middles = 10.0 ** (bits - 6) * ((borders[:-1] + borders[1:]) / 2)
        levels += [middles, -middles]
    return torch.cat(levels).sort().values
