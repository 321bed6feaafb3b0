"""An adapter's weights in the order in which `lora_panels` reads them, all sites of the adapter in one piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_serving.kernels.cpu.lanes import NUM_ELEMENTS, NUM_SUMS
from lorafleet_serving.kernels.cpu.lora_panels import RANK_GROUP
from lorafleet_serving.kernels.lora_table import NUM_RANKS, Ints, LoraLayout, address_row, slices_of
from lorafleet_serving.kernels.lora_weights import LoraSlice, LoraWeights, PackedLora, Rescale


@dataclass(frozen=True)
class LoraPanels:
    """An adapter's weights at one site: A, then B of each slice, each in panels.

    Of A, groups of `RANK_GROUP` ranks, the last may have fewer: 32 columns of each rank in turn. Of B, 32 outputs of
    two ranks in turn, pair by pair, a last rank without a neighbour by itself. Behind each, rank by rank, what whole
    vectors leave.
    """

    lying: Tensor
    """One-dimensional, as many elements as A and B have."""
    row: Ints
    """Where the panels lie."""
    rescales: tuple[Rescale | None, ...]
    """What each slice is rescaled by."""

    @property
    def num_ranks(self) -> int:
        """Ranks of all merged modules together."""
        return int(self.row[NUM_RANKS])

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return self.lying.nbytes + sum(rescale.num_bytes for rescale in self.rescales if rescale is not None)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.lying.device

    @property
    def layout(self) -> LoraLayout:
        """These panels."""
        return LoraLayout.PANELS

    def to(self, device: torch.device) -> PackedLora:
        """Only the CPU reads panels."""
        return self if device == self.device else self.dense().to(device)

    def dense(self) -> LoraWeights:
        """Written out anew."""
        a_panels, *b_panels = _split(self.lying, self.row)
        a = self.lying.new_empty(self.num_ranks, a_panels.shape[0] // self.num_ranks)
        for piece, panels in _a_pieces(a, a_panels):
            piece.copy_(panels)
        slices = []
        for part, lying, rescale in zip(slices_of(self.row), b_panels, self.rescales, strict=True):
            b = lying.new_empty(part.num_ranks, part.num_outs)
            for piece, panels in _b_pieces(b, lying):
                piece.copy_(panels)
            ends = (part.first_out, part.last_out, part.first_rank, part.last_rank)
            slices.append(LoraSlice(*ends, b.t(), rescale))
        return LoraWeights(a, tuple(slices))

    def address_row(self) -> Ints:
        """Known."""
        return self.row


def pack_sites(sites: Iterable[LoraWeights | None], num_elements: int) -> Sequence[LoraPanels | None]:
    """Bring an adapter's sites into panels, each before the next is asked for.

    Args:
        sites: in the order in which they are read.
        num_elements: of A and B of all sites together.
    """
    room = _Room(num_elements)
    # `map` lets go of a site before it asks for the next: no more than one lies in memory beside the panels.
    packed = list(map(room.pack, sites))
    assert room.num_left == 0, f"{room.num_left} of {num_elements} elements came with no site"
    return packed


class _Room:
    """Memory for all of an adapter's panels, filled from its beginning."""

    def __init__(self, num_elements: int) -> None:
        self._left = torch.empty(num_elements, dtype=torch.bfloat16)

    @property
    def num_left(self) -> int:
        """Elements of which nothing was brought into panels."""
        return self._left.shape[0]

    def pack(self, weights: LoraWeights | None) -> LoraPanels | None:
        """Take a site's part."""
        if weights is None:
            return None
        assert weights.a.dtype is self._left.dtype, f"panels hold {self._left.dtype}, and not {weights.a.dtype}"
        lying, self._left = torch.tensor_split(self._left, [weights.num_elements])
        row = _row(weights, lying)
        a_panels, *b_panels = _split(lying, row)
        for piece, panels in _a_pieces(weights.a, a_panels):
            panels.copy_(piece)
        for part, b in zip(weights.slices, b_panels, strict=True):
            for piece, panels in _b_pieces(part.b.t(), b):
                panels.copy_(piece)
        return LoraPanels(lying, row, tuple(part.rescale for part in weights.slices))


def _row(weights: LoraWeights, lying: Tensor) -> Ints:
    place = lying.data_ptr() + weights.a.nbytes
    rows = []
    for part in weights.slices:
        rows.append(part.row(place))
        place += part.b.nbytes
    return address_row(lying.data_ptr(), weights.num_ranks, rows)


def _split(lying: Tensor, row: Ints) -> Sequence[Tensor]:
    """The panels of A and those of each B."""
    sizes = [part.num_elements for part in slices_of(row)]
    return torch.split(lying, [lying.shape[0] - sum(sizes), *sizes])


Pieces = Iterator[tuple[Tensor, Tensor]]
"""Pieces of a matrix, each beside the piece of the panels where the same elements lie, in one shape."""


def _a_pieces(a: Tensor, lying: Tensor) -> Pieces:
    """[num_ranks, in_features]"""
    num_ranks, whole = a.shape[0], _whole(a.shape[1])
    for rank in range(0, num_ranks, RANK_GROUP):
        group = a[rank : rank + RANK_GROUP, :whole]
        shape = (group.shape[0], whole // NUM_ELEMENTS, NUM_ELEMENTS)
        panel = lying[rank * whole :][: group.numel()].view(shape[1], shape[0], NUM_ELEMENTS)
        yield group.view(shape), panel.transpose(0, 1)
    yield a[:, whole:], lying[num_ranks * whole :].view(num_ranks, a.shape[1] - whole)


def _b_pieces(b: Tensor, lying: Tensor) -> Pieces:
    """[num_ranks, num_outs]"""
    num_ranks, whole = b.shape[0], _whole(b.shape[1])
    num_panels, num_pairs = whole // NUM_ELEMENTS, num_ranks // 2
    panels = lying[: num_ranks * whole].view(num_panels, num_ranks, NUM_ELEMENTS)
    # By panels, pairs of ranks, halves of the outputs, outputs, and the two of a pair.
    paired = panels[:, : 2 * num_pairs].view(num_panels, num_pairs, 2, NUM_SUMS, 2)
    beside = b[: 2 * num_pairs, :whole].view(num_pairs, 2, num_panels, 2, NUM_SUMS)
    yield beside, paired.permute(1, 4, 0, 2, 3)
    if num_ranks % 2:
        yield b[-1, :whole].view(num_panels, NUM_ELEMENTS), panels[:, -1]
    yield b[:, whole:], lying[num_ranks * whole :].view(num_ranks, b.shape[1] - whole)


def _whole(num_columns: int) -> int:
    """Columns that fill whole vectors."""
    return num_columns // NUM_ELEMENTS * NUM_ELEMENTS
