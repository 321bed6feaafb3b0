"""What the LoRA operators work on: stacked weights of a site, and runs of rows with one adapter.

The model runner orders the rows of a step by adapter, so that the rows of one adapter are one run.
Everything here is prepared once per step; the operators only read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Protocol

from torch import Tensor


class LoraSlice(NamedTuple):
    """B of one merged module, and the part of the outputs and of the stacked ranks it belongs to."""

    out_start: int
    out_end: int
    rank_start: int
    rank_end: int
    b: Tensor
    """[out_end - out_start, rank_end - rank_start], already scaled"""


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
        return self.a.nbytes + sum(part.b.nbytes for part in self.slices)


class LoraSegment(NamedTuple):
    """Rows `start` to `end` of the step, and what their adapter adds to them at one site."""

    start: int
    end: int
    weights: LoraWeights


class AdapterSites(Protocol):
    """Weights of one adapter by site index; None where the adapter leaves the site alone."""

    @property
    def sites(self) -> Sequence[LoraWeights | None]:
        """One entry per site of the model."""
        ...


LoraBatch = tuple[tuple[LoraSegment, ...], ...]
"""Segments of one step by site index."""


def build_lora_batch(rows: Sequence[tuple[AdapterSites | None, int]]) -> LoraBatch | None:
    """Prepare the segments of a step.

    Args:
        rows: adapter and number of rows of each sequence, in row order, those of one adapter side by side.

    Returns:
        Segments by site index; None if no row has an adapter.
    """
    runs: list[tuple[int, int, AdapterSites]] = []
    start = 0
    for _, group in groupby(rows, key=lambda row: id(row[0])):
        members = list(group)
        end = start + sum(num_rows for _, num_rows in members)
        adapter = members[0][0]
        if adapter is not None and end > start:
            runs.append((start, end, adapter))
        start = end
    if not runs:
        return None
    by_site = zip(*(adapter.sites for _, _, adapter in runs), strict=True)
    return tuple(
        tuple(
            LoraSegment(start, end, weights)
            for (start, end, _), weights in zip(runs, at_site, strict=True)
            if weights is not None
        )
        for at_site in by_site
    )
