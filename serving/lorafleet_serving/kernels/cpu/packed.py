"""Packed weights of the CPU: each form's own product for few rows, and what serves it for many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numba
import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.cpu import int8, nf4, panels
from lorafleet_serving.kernels.cpu.element import TAGS
from lorafleet_serving.kernels.nf4 import BLOCK_SIZE, Nf4Weight
from lorafleet_serving.kernels.packed_weight import PackedWeight
from lorafleet_serving.kernels.weights import GROUP_SIZE, Int4Weight, Int8Weight

_PACKED_FOR_ROWS = 32
"""Rows that oneDNN's layout is chosen for; it serves one row, and a thousand, as well."""
_FEW_ROWS = 3
"""Rows up to which the compiled products are faster than oneDNN's, for they read less and compute more slowly."""
_FEW_PANEL_ROWS = 4
"""The same for bf16, of which they read as much, and faster."""


class OneDnnWeight(NamedTuple):
    """A weight in oneDNN's own layout, which saves it the rearranging at each call."""

    packed: Tensor
    out_features: int
    panels: int
    """Address of the packed weight where it lies as `cpu.panels` wants it, else 0."""

    @classmethod
    def of(cls, weight: Tensor) -> OneDnnWeight:
        """Rearrange [out_features, in_features]."""
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        return cls(packed, weight.shape[0], panels.address_of(packed, weight))

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Compiled, or through oneDNN."""
        if self.panels and x.shape[0] <= _FEW_PANEL_ROWS:
            return _multiply(panels.linear, x, self.out_features, (self.panels,), bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")
        return y


class PackedInt8(NamedTuple):
    """Codes for few rows, and the weight that they stand for, in the model's format, for many."""

    panels: Tensor
    scales: Tensor
    input_scales: Tensor
    dense: PackedWeight

    @classmethod
    def of(cls, weight: Int8Weight, dense: PackedWeight) -> PackedInt8:
        """Bring the codes into panels."""
        return cls(int8.panels_of(weight.codes), weight.scales, weight.input_scales, dense)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Compiled, or through oneDNN."""
        if x.shape[0] > _FEW_ROWS:
            return self.dense.linear(x, bias)
        addresses = (self.panels.data_ptr(), self.scales.data_ptr(), self.input_scales.data_ptr())
        return _multiply(int8.linear, x, self.scales.shape[0], addresses, bias)


class PackedInt4(NamedTuple):
    """Codes in the layout of torch's own product."""

    codes: Tensor
    scales_and_offsets: Tensor

    @classmethod
    def of(cls, weight: Int4Weight) -> PackedInt4:
        """Two codes to a byte."""
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes, 1)
        return cls(codes, weight.scales_and_offsets)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """One matrix product."""
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.codes, GROUP_SIZE, self.scales_and_offsets)
        return y if bias is None else y.add_(bias)


class PackedNf4(NamedTuple):
    """Two codes to a byte. For many rows the weight is written out each time, which costs them little."""

    codes: Tensor
    """[out_features, in_features / 2] as `cpu.nf4` wants them"""
    scales: Tensor

    @classmethod
    def of(cls, weight: Nf4Weight) -> PackedNf4:
        """Put the code of a weight beside that of the weight half a block later."""
        upper, lower = weight.codes.view(weight.codes.shape[0], -1, 2, BLOCK_SIZE // 2).unbind(2)
        return cls((upper << 4 | lower).flatten(1), weight.scales)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Compiled, or through oneDNN."""
        if x.shape[0] > _FEW_ROWS:
            return F.linear(x, self._dense(x), bias)
        return _multiply(nf4.linear, x, self.codes.shape[0], (self.codes.data_ptr(), self.scales.data_ptr()), bias)

    def _dense(self, x: Tensor) -> Tensor:
        out_features, in_features = self.codes.shape[0], x.shape[1]
        weight = x.new_empty(out_features, in_features)
        addresses = (self.codes.data_ptr(), self.scales.data_ptr(), weight.data_ptr())
        nf4.dense(TAGS[x.dtype], *addresses, in_features, out_features, numba.get_num_threads())
        return weight


def _multiply(
    product: Callable[..., None], x: Tensor, out_features: int, weight: Sequence[int], bias: Tensor | None
) -> Tensor:
    num_rows, in_features = x.shape
    y = x.new_empty(num_rows, out_features)
    product(
        *(TAGS[x.dtype], x.data_ptr(), *weight, 0 if bias is None else bias.data_ptr(), y.data_ptr()),
        *((num_rows, in_features, out_features), numba.get_num_threads()),
    )
    return y
