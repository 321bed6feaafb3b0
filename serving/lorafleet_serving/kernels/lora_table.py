"""Where an adapter's tensors lie, as rows of numbers that compiled operators read.

An operator that follows addresses needs no copy of the adapters side by side: they stay where they were loaded, with
their own ranks, and a step's table is put together by stacking rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

A, NUM_RANKS, NUM_SLICES, SLICES = range(4)
"""Columns of a row: address of A, its ranks, number of merged modules with an adapter; then the modules' slices."""
B, FIRST_RANK, LAST_RANK, FIRST_OUT, LAST_OUT, GAIN, OFFSET, SLICE_WIDTH = range(8)
"""Columns of a slice: address of B, its part of the stacked ranks, its part of the outputs, and the addresses of what
they are rescaled by, 0 where they are not."""
MAX_SLICES = 3
ROW_WIDTH = SLICES + MAX_SLICES * SLICE_WIDTH


class LoraLayout(Enum):
    """Orders in which A and B may lie at their addresses; which it is, addresses do not tell."""

    BY_RANK = auto()
    PANELS = auto()
    """As `cpu.packed_lora` brings them."""


class SliceRow(NamedTuple):
    """Columns of a slice, in their order."""

    b: int
    first_rank: int
    last_rank: int
    first_out: int
    last_out: int
    gain: int
    offset: int

    @property
    def num_ranks(self) -> int:
        """Of B."""
        return self.last_rank - self.first_rank

    @property
    def num_outs(self) -> int:
        """Of B."""
        return self.last_out - self.first_out

    @property
    def num_elements(self) -> int:
        """Of B."""
        return self.num_ranks * self.num_outs


class Placed(Protocol):
    """An adapter's weights at a site."""

    @property
    def layout(self) -> LoraLayout:
        """The order in which they lie."""
        ...

    def address_row(self) -> Ints:
        """Where they lie, as `address_row` puts it."""
        ...


class AddressTable(NamedTuple):
    """Where the weights of one adapter lie, and what a step asks of all its sites together."""

    rows: Ints
    """[num_sites, ROW_WIDTH], zeros where the adapter leaves the site alone"""
    layout: LoraLayout | None
    """None where it leaves all sites alone."""
    mean_rank: float
    """Ranks of a site, of all sites."""


def address_table(sites: Sequence[Placed | None]) -> AddressTable:
    """Addresses of one adapter by site; its tensors must outlive the table."""
    rows = np.zeros((len(sites), ROW_WIDTH), dtype=np.int64)
    placed = [(row, weights) for row, weights in zip(rows, sites, strict=True) if weights is not None]
    for row, weights in placed:
        row[:] = weights.address_row()
    layouts = {weights.layout for _, weights in placed}
    assert len(layouts) <= 1, "some sites of an adapter were packed and others were not"
    mean_rank = float(rows[:, NUM_RANKS].sum()) / max(1, len(sites))
    return AddressTable(rows, next(iter(layouts), None), mean_rank)


def address_row(a: int, num_ranks: int, slices: Sequence[SliceRow]) -> Ints:
    """One row, from the address of A and from the slices."""
    assert len(slices) <= MAX_SLICES, f"{len(slices)} modules are merged, at most {MAX_SLICES} may be"
    row = np.zeros(ROW_WIDTH, dtype=np.int64)
    row[:SLICES] = a, num_ranks, len(slices)
    for number, part in enumerate(slices):
        start = SLICES + number * SLICE_WIDTH
        row[start : start + SLICE_WIDTH] = part
    return row


def slices_of(row: Ints) -> list[SliceRow]:
    """The slices of one row."""
    starts = range(SLICES, SLICES + row[NUM_SLICES] * SLICE_WIDTH, SLICE_WIDTH)
    return [SliceRow(*row[start : start + SLICE_WIDTH].tolist()) for start in starts]
