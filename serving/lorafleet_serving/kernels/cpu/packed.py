"""Packed weights of the CPU: each form's own product for few rows, and what serves it for many."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numba
import torch
from torch import Tensor
from torch.nn import functional as F

from lorafleet_serving.kernels.cpu import int8, nf4, panels
from lorafleet_serving.kernels.cpu.element import TAGS
from lorafleet_serving.kernels.nf4 import BLOCK_SIZE, Nf4Weight
from lorafleet_serving.kernels.packed_weight import PackedWeight
from lorafleet_serving.kernels.weights import INT4_GROUP_SIZE, Int4Weight, Int8Weight

_PACKED_FOR_ROWS = 32
"""Rows that oneDNN's layout is chosen for; it serves one row, and a thousand, as well."""
_FEW_ROWS = 3
"""Rows up to which the compiled products are faster than oneDNN's, for they read less and compute more slowly."""
_FEW_PANEL_ROWS = 4
"""The same for bf16, of which they read as much, and faster."""
_EXACT_ROWS = 128
"""Rows up to which oneDNN is asked for just as many as there are: more would cost too large a share."""


class CompiledProduct(NamedTuple):
    """A compiled product with its weight, which no call has to look up again."""

    function: Callable[..., None]
    weight: tuple[Tensor, ...]
    """What lies at the addresses."""
    addresses: tuple[int, ...]
    out_features: int
    num_parts: int
    most_rows: int = _FEW_ROWS
    """Rows up to which it is faster than what serves many."""

    @classmethod
    def of(cls, function: Callable[..., None], weight: tuple[Tensor, ...], out_features: int) -> CompiledProduct:
        """A product that takes the addresses of its weight's tensors, and one part of the outputs for each thread."""
        addresses = tuple(tensor.data_ptr() for tensor in weight)
        return cls(function, weight, addresses, out_features, numba.get_num_threads())

    def takes(self, x: Tensor) -> bool:
        """Whether it is for these rows."""
        return x.shape[0] <= self.most_rows

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """y = x W.T + bias"""
        num_rows, in_features = x.shape
        y = x.new_empty(num_rows, self.out_features)
        self.function(
            *(TAGS[x.dtype], x.data_ptr(), *self.addresses, 0 if bias is None else bias.data_ptr(), y.data_ptr()),
            *((num_rows, in_features, self.out_features), self.num_parts),
        )
        return y


def rows_computed(num_rows: int) -> int:
    """Rows that oneDNN is asked for in place of `num_rows`: at most an eighth more.

    It keeps the code that it compiles for each number of rows, with SmolLM2-135M 3 MiB for each of the first two
    hundred and half of that for each beyond, and gives it up never: a pod must not meet every number that fits into
    a step.
    """
    if num_rows <= _EXACT_ROWS:
        return num_rows
    grain = (1 << (num_rows - 1).bit_length()) // 16
    return -(-num_rows // grain) * grain


class OneDnnWeight(NamedTuple):
    """A weight in oneDNN's own layout, which saves it the rearranging at each call."""

    packed: Tensor
    few_rows: CompiledProduct | None
    """What multiplies few rows, where the packed weight lies as it wants it."""

    @classmethod
    def of(cls, weight: Tensor) -> OneDnnWeight:
        """Rearrange [out_features, in_features]."""
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        address, num_parts = panels.address_of(packed, weight), numba.get_num_threads()
        product = CompiledProduct(
            panels.linear, (packed,), (address,), weight.shape[0], num_parts, most_rows=_FEW_PANEL_ROWS
        )
        return cls(packed, product if address else None)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Compiled, or through oneDNN."""
        if self.few_rows is not None and self.few_rows.takes(x):
            return self.few_rows(x, bias)
        num_rows = x.shape[0]
        padding = rows_computed(num_rows) - num_rows
        rows = F.pad(x, (0, 0, 0, padding)) if padding else x
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, bias, "none", [], "")
        return y[:num_rows]


class PackedInt8(NamedTuple):
    """Codes for few rows, and the weight that they stand for, in the model's format, for many."""

    few_rows: CompiledProduct
    dense: PackedWeight

    @classmethod
    def of(cls, weight: Int8Weight, dense: PackedWeight) -> PackedInt8:
        """Bring the codes into panels."""
        parts = (int8.panels_of(weight.codes), int8.panels_of(weight.scales))
        return cls(CompiledProduct.of(int8.linear, parts, weight.codes.shape[0]), dense)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Compiled, or through oneDNN."""
        return self.few_rows(x, bias) if self.few_rows.takes(x) else self.dense.linear(x, bias)


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
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.codes, INT4_GROUP_SIZE, self.scales_and_offsets)
        return y if bias is None else y.add_(bias)


class PackedNf4(NamedTuple):
    """Two codes to a byte. For many rows the weight is written out each time, which costs them little."""

    few_rows: CompiledProduct

    @classmethod
    def of(cls, weight: Nf4Weight) -> PackedNf4:
        """Put the code of a weight beside that of the weight half a block later, as `cpu.nf4` wants them."""
        upper, lower = weight.codes.view(weight.codes.shape[0], -1, 2, BLOCK_SIZE // 2).unbind(2)
        codes = (upper << 4 | lower).flatten(1)
        return cls(CompiledProduct.of(nf4.linear, (codes, weight.scales), codes.shape[0]))

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Compiled, or through oneDNN."""
        return self.few_rows(x, bias) if self.few_rows.takes(x) else F.linear(x, self._dense(x), bias)

    def _dense(self, x: Tensor) -> Tensor:
        product = self.few_rows
        weight = x.new_empty(product.out_features, x.shape[1])
        nf4.dense(TAGS[x.dtype], *product.addresses, weight.data_ptr(), *weight.shape[::-1], product.num_parts)
        return weight


def product_of_few_rows(weight: PackedWeight) -> CompiledProduct | None:
    """The compiled product of a weight, where it has one."""
    return weight.few_rows if isinstance(weight, OneDnnWeight | PackedInt8 | PackedNf4) else None
