"""What the LoRA operators work on: stacked weights of a site, and runs of rows with one adapter.

The model runner orders the rows of a step by adapter, so that the rows of one adapter are one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Rescale(NamedTuple):
    """What a DoRA module does to its outputs, base and adapter together: y = gain * y + offset."""

    gain: Tensor
    """[out_features] in fp32"""
    offset: Tensor
    """[out_features] in fp32"""


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
        return self.b.nbytes + (0 if self.rescale is None else self.rescale.gain.nbytes + self.rescale.offset.nbytes)

    def to(self, device: torch.device) -> LoraSlice:
        """The same on a device."""
        rescale = None if self.rescale is None else Rescale(*(tensor.to(device) for tensor in self.rescale))
        return self._replace(b=self.b.t().to(device).t(), rescale=rescale)


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
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return self.a.nbytes + sum(part.num_bytes for part in self.slices)

    def to(self, device: torch.device) -> LoraWeights:
        """The same on a device."""
        return LoraWeights(self.a.to(device), tuple(part.to(device) for part in self.slices))


class AdapterSites(Protocol):
    """Weights of one adapter by site index; None where the adapter leaves the site alone."""

    @property
    def sites(self) -> Sequence[LoraWeights | None]:
        """One entry per site of the model."""
        ...

    @property
    def addresses(self) -> NDArray[np.int64]:
        """Where the tensors lie, as `lora_table.address_table` tells it."""
        ...


class LoraRun(NamedTuple):
    """Rows `start` to `end` of a step, which have one adapter."""

    start: int
    end: int
    adapter: AdapterSites


class LoraSegment(NamedTuple):
    """A run at one site, and what its adapter adds there."""

    start: int
    end: int
    weights: LoraWeights


def find_runs(rows: Sequence[tuple[AdapterSites | None, int]]) -> list[LoraRun]:
    """Runs of a step; empty if no row has an adapter.

    Args:
        rows: adapter and number of rows of each sequence, in row order, those of one adapter side by side.
    """
    runs: list[LoraRun] = []
    start = 0
    for _, group in groupby(rows, key=lambda row: id(row[0])):
        members = list(group)
        end = start + sum(num_rows for _, num_rows in members)
        adapter = members[0][0]
        if adapter is not None and end > start:
            runs.append(LoraRun(start, end, adapter))
        start = end
    return runs


def segments_at(runs: Sequence[LoraRun], site: int) -> list[LoraSegment]:
    """Segments of the runs whose adapters change a site."""
    found = ((start, end, adapter.sites[site]) for start, end, adapter in runs)
    return [LoraSegment(start, end, weights) for start, end, weights in found if weights is not None]
