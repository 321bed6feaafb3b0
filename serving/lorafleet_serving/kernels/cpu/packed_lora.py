"""An adapter's weights in the order in which `lora_panels` reads them, all sites of the adapter in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_serving.kernels.cpu.lanes import NUM_ELEMENTS, NUM_SUMS
from lorafleet_serving.kernels.cpu.lora_panels import RANK_GROUP
from lorafleet_serving.kernels.lora_table import NUM_RANKS, Ints, SliceRow, address_row, slices_of
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

    def to(self, device: torch.device) -> PackedLora:
        """Only the CPU reads panels."""
        return self if device == self.device else self.dense().to(device)

    def dense(self) -> LoraWeights:
        """Written out anew."""
        found = slices_of(self.row)
        sizes = [part.num_elements for part in found]
        a, *lying = torch.split(self.lying, [self.lying.shape[0] - sum(sizes), *sizes])
        slices = (
            LoraSlice(part.first_out, part.last_out, part.first_rank, part.last_rank, _b_of(panels, part).t(), rescale)
            for part, panels, rescale in zip(found, lying, self.rescales, strict=True)
        )
        return LoraWeights(_a_of(a, self.num_ranks), tuple(slices))

    def address_row(self) -> Ints:
        """Known."""
        return self.row


def pack_sites(sites: Sequence[LoraWeights | None]) -> Sequence[LoraPanels | None]:
    """Bring an adapter's sites into panels."""
    parts = [[] if weights is None else list(_panels(weights)) for weights in sites]
    sizes = [sum(part.shape[0] for part in site) for site in parts]
    if not any(sizes):
        return [None] * len(sites)
    pieces = torch.split(torch.cat([part for site in parts for part in site]), sizes)
    placed = zip(sites, pieces, strict=True)
    return [None if weights is None else _placed(weights, piece) for weights, piece in placed]


def _placed(weights: LoraWeights, lying: Tensor) -> LoraPanels:
    place = lying.data_ptr() + weights.a.nbytes
    rows = []
    for part in weights.slices:
        rows.append(part.row(place))
        place += part.b.nbytes
    row = address_row(lying.data_ptr(), weights.num_ranks, rows)
    return LoraPanels(lying, row, tuple(part.rescale for part in weights.slices))


def _panels(weights: LoraWeights) -> Iterator[Tensor]:
    yield from _a_panels(weights.a)
    for part in weights.slices:
        yield from _b_panels(part.b.t())


def _a_panels(a: Tensor) -> Iterator[Tensor]:
    """[num_ranks, in_features] in panels, one behind the other."""
    num_ranks, whole = a.shape[0], _whole(a.shape[1])
    for rank in range(0, num_ranks, RANK_GROUP):
        group = a[rank : rank + RANK_GROUP, :whole]
        yield group.reshape(group.shape[0], whole // NUM_ELEMENTS, NUM_ELEMENTS).transpose(0, 1).flatten()
    yield a[:, whole:].flatten()


def _a_of(lying: Tensor, num_ranks: int) -> Tensor:
    in_features = lying.shape[0] // num_ranks
    a, whole = lying.new_empty(num_ranks, in_features), _whole(in_features)
    for rank in range(0, num_ranks, RANK_GROUP):
        group = a[rank : rank + RANK_GROUP, :whole]
        panel = lying[rank * whole :][: group.numel()]
        group.copy_(panel.view(whole // NUM_ELEMENTS, group.shape[0], NUM_ELEMENTS).transpose(0, 1).flatten(1))
    a[:, whole:] = lying[num_ranks * whole :].view(num_ranks, in_features - whole)
    return a


def _b_panels(b: Tensor) -> Iterator[Tensor]:
    """[num_ranks, num_outs] in panels, one behind the other."""
    num_ranks, whole = b.shape[0], _whole(b.shape[1])
    num_panels, num_pairs = whole // NUM_ELEMENTS, num_ranks // 2
    panels = b.new_empty(num_panels, num_ranks, NUM_ELEMENTS)
    pairs = _pairs(panels, num_pairs)
    pairs.copy_(b[: 2 * num_pairs, :whole].reshape(num_pairs, 2, num_panels, 2, NUM_SUMS).permute(2, 0, 3, 4, 1))
    if num_ranks % 2:
        panels[:, -1] = b[-1, :whole].view(num_panels, NUM_ELEMENTS)
    yield panels.flatten()
    yield b[:, whole:].flatten()


def _b_of(lying: Tensor, part: SliceRow) -> Tensor:
    num_ranks, num_outs = part.last_rank - part.first_rank, part.last_out - part.first_out
    b, whole = lying.new_empty(num_ranks, num_outs), _whole(num_outs)
    num_pairs = num_ranks // 2
    panels = lying[: num_ranks * whole].view(whole // NUM_ELEMENTS, num_ranks, NUM_ELEMENTS)
    b[: 2 * num_pairs, :whole] = _pairs(panels, num_pairs).permute(1, 4, 0, 2, 3).reshape(2 * num_pairs, whole)
    if num_ranks % 2:
        b[-1, :whole] = panels[:, -1].flatten()
    b[:, whole:] = lying[num_ranks * whole :].view(num_ranks, num_outs - whole)
    return b


def _pairs(panels: Tensor, num_pairs: int) -> Tensor:
    """What lies by pairs, by outputs, pairs of ranks, halves of the outputs, outputs, and the two of a pair."""
    return panels[:, : 2 * num_pairs].view(panels.shape[0], num_pairs, 2, NUM_SUMS, 2)


def _whole(num_columns: int) -> int:
    """Columns that fill whole vectors."""
    return num_columns // NUM_ELEMENTS * NUM_ELEMENTS
