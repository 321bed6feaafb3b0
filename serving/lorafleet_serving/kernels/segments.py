"""What the LoRA operators work on: runs of rows with one adapter.

The model runner orders the rows of a step by adapter, so that the rows of one adapter are one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

from lorafleet_serving.kernels.lora_table import AddressTable
from lorafleet_serving.kernels.lora_weights import LoraWeights, PackedLora


class AdapterSites(Protocol):
    """Weights of one adapter by site index; None where the adapter leaves the site alone."""

    @property
    def sites(self) -> Sequence[PackedLora | None]:
        """One entry per site of the model."""
        ...

    @property
    def addresses(self) -> AddressTable:
        """Where the tensors lie."""
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
    return [LoraSegment(start, end, weights.dense()) for start, end, weights in found if weights is not None]
