from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from lorafleet_serving.kernels.lora_table import AddressTable, address_table
from lorafleet_serving.kernels.lora_weights import LoraWeights
from lorafleet_serving.kernels.segments import find_runs, segments_at


@dataclass(frozen=True, eq=False)
class Adapter:
    sites: tuple[LoraWeights | None, ...]
    addresses: AddressTable = field(default_factory=lambda: address_table([]))


def make_weights() -> LoraWeights:
    return LoraWeights(torch.zeros(2, 3), ())


FIRST = Adapter((make_weights(), None))
SECOND = Adapter((make_weights(), make_weights()))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(FIRST, 3)], [(0, 3, FIRST)]),
        ([(None, 2), (FIRST, 3)], [(2, 5, FIRST)]),
        ([(FIRST, 1), (FIRST, 4), (SECOND, 2)], [(0, 5, FIRST), (5, 7, SECOND)]),
        ([(SECOND, 1), (None, 1), (FIRST, 1)], [(0, 1, SECOND), (2, 3, FIRST)]),
        ([(SECOND, 0), (FIRST, 2)], [(0, 2, FIRST)]),
        ([(None, 3), (None, 1)], []),
        ([], []),
    ],
)
def test_rows_of_one_adapter_are_one_run(
    rows: list[tuple[Adapter | None, int]], expected: list[tuple[int, int, Adapter]]
) -> None:
    assert find_runs(rows) == expected


def test_an_adapter_that_leaves_a_site_alone_has_no_segment_there() -> None:
    runs = find_runs([(FIRST, 2), (SECOND, 3)])
    assert [(start, end) for start, end, _ in segments_at(runs, 0)] == [(0, 2), (2, 5)]
    (segment,) = segments_at(runs, 1)
    assert (segment.start, segment.end) == (2, 5)
    assert segment.weights is SECOND.sites[1]
