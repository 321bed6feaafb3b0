"""An adapter's weights at one site, as they come and as a form of the operators holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lorafleet_serving.kernels.lora_table import Ints, LoraLayout, SliceRow, address_row


class Rescale(NamedTuple):
    """What a DoRA module does to its outputs, base and adapter together: y = gain * y + offset."""

    gain: Tensor
    """[out_features] in fp32"""
    offset: Tensor
    """[out_features] in fp32"""

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return self.gain.nbytes + self.offset.nbytes


class LoraSlice(NamedTuple):
    """B of one merged module, and the part of the outputs and of the stacked ranks it belongs to."""

    out_start: int
    out_end: int
    rank_start: int
    rank_end: int
    b: Tensor
    """[out_end - out_start, rank_end - rank_start], already scaled; lies rank by rank in memory"""
    rescale: Rescale | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return self.b.nbytes + (0 if self.rescale is None else self.rescale.num_bytes)

    def row(self, b: int) -> SliceRow:
        """The slice where its B lies at an address."""
        scales = (0, 0) if self.rescale is None else tuple(tensor.data_ptr() for tensor in self.rescale)
        return SliceRow(b, self.rank_start, self.rank_end, self.out_start, self.out_end, *scales)

    def to(self, device: torch.device) -> LoraSlice:
        """The same on a device."""
        rescale = None if self.rescale is None else Rescale(*(tensor.to(device) for tensor in self.rescale))
        return self._replace(b=self.b.t().to(device).t(), rescale=rescale)


class PackedLora(Protocol):
    """An adapter's weights at one site, in the layout that the operators read fastest."""

    @property
    def num_ranks(self) -> int:
        """Ranks of all merged modules together."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors: as many bytes as before they were packed."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        ...

    @property
    def layout(self) -> LoraLayout:
        """The order in which they lie."""
        ...

    def to(self, device: torch.device) -> PackedLora:
        """The same on a device."""
        ...

    def dense(self) -> LoraWeights:
        """The weights as they came; written out anew where they were packed."""
        ...

    def address_row(self) -> Ints:
        """Where they lie, as a row of `lora_table`; they must outlive it."""
        ...


@dataclass(frozen=True)
class LoraWeights:
    """An adapter's weights at one site: A stacked over the merged modules, B apart."""

    a: Tensor
    """[sum of ranks, in_features]"""
    slices: tuple[LoraSlice, ...]

    @property
    def num_ranks(self) -> int:
        """Ranks of all merged modules together."""
        return self.a.shape[0]

    @property
    def num_elements(self) -> int:
        """Of A and of B."""
        return self.a.numel() + sum(part.b.numel() for part in self.slices)

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return self.a.nbytes + sum(part.num_bytes for part in self.slices)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.a.device

    @property
    def layout(self) -> LoraLayout:
        """As they come."""
        return LoraLayout.BY_RANK

    def dense(self) -> LoraWeights:
        """These."""
        return self

    def address_row(self) -> Ints:
        """Where A and B lie."""
        assert self.a.is_contiguous(), "A must lie row by row"
        assert all(part.b.t().is_contiguous() for part in self.slices), "B must lie rank by rank"
        return address_row(self.a.data_ptr(), self.num_ranks, [part.row(part.b.data_ptr()) for part in self.slices])

    def to(self, device: torch.device) -> LoraWeights:
        """The same on a device."""
        return LoraWeights(self.a.to(device), tuple(part.to(device) for part in self.slices))
