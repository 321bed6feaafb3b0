"""Where an adapter's tensors lie, as rows of numbers that compiled operators read.

An operator that follows addresses needs no copy of the adapters side by side: they stay where they were loaded, with
their own ranks, and a step's table is put together by stacking rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorafleet_serving.kernels.segments import LoraWeights

Ints = NDArray[np.int64]

A, NUM_RANKS, NUM_SLICES, SLICES = range(4)
"""Columns of a row: address of A, its ranks, number of merged modules with an adapter; then the modules' slices."""
B, FIRST_RANK, LAST_RANK, FIRST_OUT, LAST_OUT, GAIN, OFFSET, SLICE_WIDTH = range(8)
"""Columns of a slice: address of B, its part of the stacked ranks, its part of the outputs, and the addresses of what
they are rescaled by, 0 where they are not."""
MAX_SLICES = 3
ROW_WIDTH = SLICES + MAX_SLICES * SLICE_WIDTH


def address_table(sites: Sequence[LoraWeights | None]) -> Ints:
    """Rows of one adapter by site: [num_sites, ROW_WIDTH], zeros where it leaves the site alone.

    The adapter's tensors must outlive the table.
    """
    table = np.zeros((len(sites), ROW_WIDTH), dtype=np.int64)
    for row, weights in zip(table, sites, strict=True):
        if weights is not None:
            _describe(weights, row)
    return table


def _describe(weights: LoraWeights, row: Ints) -> None:
    assert len(weights.slices) <= MAX_SLICES, f"{len(weights.slices)} modules are merged, at most {MAX_SLICES} may be"
    assert weights.a.is_contiguous(), "A must lie row by row"
    row[:SLICES] = weights.a.data_ptr(), weights.num_ranks, len(weights.slices)
    for number, part in enumerate(weights.slices):
        assert part.b.t().is_contiguous(), "B must lie rank by rank"
        start = SLICES + number * SLICE_WIDTH
        ends = (part.rank_start, part.rank_end, part.out_start, part.out_end)
        rescaled = (0, 0) if part.rescale is None else tuple(tensor.data_ptr() for tensor in part.rescale)
        row[start : start + SLICE_WIDTH] = (part.b.data_ptr(), *ends, *rescaled)
