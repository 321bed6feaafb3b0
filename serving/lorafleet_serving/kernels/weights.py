"""Weights of linear layers in the forms they may be held in, and what each stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels import nf4
from lorafleet_serving.kernels.nf4 import Nf4Weight
from lorafleet_serving.kernels.weight_format import WeightFormat

INT8_GROUP_SIZE = 64
"""Weights of a row that share a scale in 8 bits: a large one leaves few steps to none but these."""
INT4_GROUP_SIZE = 32
"""Weights of a row that share a scale and an offset in 4 bits."""
_HIGHEST_INT8 = 127
_HIGHEST_INT4 = 15
_MIDDLE_INT4 = 8
_INT4_OUTPUTS = 16
"""The 4-bit kernel takes outputs by so many."""


class PlainWeight(NamedTuple):
    """A weight as it is."""

    values: Tensor
    """[out_features, in_features]"""

    def dense(self) -> Tensor:
        """The weight that is served."""
        return self.values


class Int8Weight(NamedTuple):
    """W = scale of the group * code, groups along the inputs."""

    codes: Tensor
    """[out_features, in_features] int8, -127 to 127"""
    scales: Tensor
    """[out_features, num_groups] in bf16; the last group of a row may be smaller"""
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """The weight that is served."""
        scales = self.scales.float().repeat_interleave(INT8_GROUP_SIZE, dim=1)[:, : self.codes.shape[1]]
        return (self.codes * scales).to(self.dtype)


class Int4Weight(NamedTuple):
    """W = scale of the group * (code - 8) + offset of the group, groups along the inputs."""

    codes: Tensor
    """[out_features, in_features] int32, 0 to 15"""
    scales_and_offsets: Tensor
    """[in_features / INT4_GROUP_SIZE, out_features, 2] in the model's format"""

    def dense(self) -> Tensor:
        """The weight that is served."""
        scales, offsets = self.scales_and_offsets.float().permute(2, 1, 0).unsqueeze(-1)
        centred = (self.codes - _MIDDLE_INT4).view(self.codes.shape[0], -1, INT4_GROUP_SIZE)
        weight: Tensor = (centred * scales + offsets).flatten(1).to(self.scales_and_offsets.dtype)
        return weight


Weight = PlainWeight | Int8Weight | Int4Weight | Nf4Weight


def quantize(weight: Tensor, form: WeightFormat, out_features: Sequence[int]) -> Weight:
    """Bring a weight into a form. What is not finite stays so in each.

    Args:
        weight: [sum of out_features, in_features] of merged modules.
        form: as the setting has it; a shape that it cannot take gets the next better one.
        out_features: outputs of each module, since scales may belong to a whole module.
    """
    if form is WeightFormat.NF4:
        return _nf4(weight, out_features)
    if form is WeightFormat.INT4 and weight.shape[0] % _INT4_OUTPUTS == 0 and weight.shape[1] % INT4_GROUP_SIZE == 0:
        return _int4(weight)
    return PlainWeight(weight) if form is WeightFormat.MODEL else _int8(weight)


def _int8(weight: Tensor) -> Int8Weight:
    out_features, in_features = weight.shape
    filled = F.pad(weight.float(), (0, -in_features % INT8_GROUP_SIZE)).view(out_features, -1, INT8_GROUP_SIZE)
    # Rounded first, so that the codes make up for what the rounding takes.
    scales = (filled.abs().amax(2) / _HIGHEST_INT8).bfloat16()
    steps = (filled / _divisor(scales.float()).unsqueeze(2)).round_().clamp_(-_HIGHEST_INT8, _HIGHEST_INT8)
    return Int8Weight(steps.to(torch.int8).flatten(1)[:, :in_features], scales, weight.dtype)


def _int4(weight: Tensor) -> Int4Weight:
    groups = weight.float().view(weight.shape[0], -1, INT4_GROUP_SIZE)  # [out_features, num_groups, INT4_GROUP_SIZE]
    lowest, highest = groups.aminmax(dim=2, keepdim=True)
    # Rounded first, so that the codes make up for what the rounding takes.
    scales = ((highest - lowest) / _HIGHEST_INT4).to(weight.dtype)
    offsets = (lowest + _MIDDLE_INT4 * scales.float()).to(weight.dtype)
    steps = ((groups - offsets.float()) / _divisor(scales.float())).round_() + _MIDDLE_INT4
    codes = steps.clamp_(0, _HIGHEST_INT4).to(torch.int32).flatten(1)
    return Int4Weight(codes, torch.stack((scales, offsets), dim=-1).squeeze(2).transpose(0, 1).contiguous())


def _nf4(weight: Tensor, out_features: Sequence[int]) -> Nf4Weight | PlainWeight:
    modules = [(module, nf4.nf4_blocks(module)) for module in torch.split_with_sizes(weight, list(out_features))]
    if weight.shape[1] % nf4.BLOCK_SIZE:  # Blocks reach from row to row, where no product can follow.
        return PlainWeight(torch.cat([blocks.values(module) for module, blocks in modules]))
    codes = torch.cat([blocks.codes for _, blocks in modules]).view(weight.shape)
    scales = torch.cat([blocks.scales for _, blocks in modules]).view(weight.shape[0], -1)
    return Nf4Weight(codes, scales, weight.dtype)


def _divisor(scales: Tensor) -> Tensor:
    # A row of zeros has codes of zero; NaN stays.
    return scales.clamp(min=torch.finfo(torch.float32).tiny)
