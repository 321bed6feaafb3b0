"""Where an adapter's tensors lie, as rows of numbers that compiled operators read.

An operator that follows addresses needs no copy of the adapters side by side: they stay where they were loaded, with
their own ranks, and a step's table is put together by stacking rows.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    def num_elements(self) -> int:
        """Of B."""
        return (self.last_rank - self.first_rank) * (self.last_out - self.first_out)


class Placed(Protocol):
    """An adapter's weights at a site."""

    def address_row(self) -> Ints:
        """Where they lie, as `address_row` puts it."""
        ...


def address_table(sites: Sequence[Placed | None]) -> Ints:
    """Rows of one adapter by site: [num_sites, ROW_WIDTH], zeros where it leaves the site alone.

    The adapter's tensors must outlive the table.
    """
    table = np.zeros((len(sites), ROW_WIDTH), dtype=np.int64)
    for row, weights in zip(table, sites, strict=True):
        if weights is not None:
            row[:] = weights.address_row()
    return table


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
