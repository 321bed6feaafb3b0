from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lorafleet_serving.kernels.segments import LoraWeights, build_lora_batch


@dataclass(frozen=True)
class Adapter:
    sites: tuple[LoraWeights | None, ...]


def make_weights() -> LoraWeights:
    return LoraWeights(torch.zeros(2, 3), ())


FIRST = Adapter((make_weights(), None))
SECOND = Adapter((make_weights(), make_weights()))

Runs = list[list[tuple[int, int, Adapter]]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(FIRST, 3)], [[(0, 3, FIRST)], []]),
        ([(None, 2), (FIRST, 3)], [[(2, 5, FIRST)], []]),
        ([(FIRST, 1), (FIRST, 4), (SECOND, 2)], [[(0, 5, FIRST), (5, 7, SECOND)], [(5, 7, SECOND)]]),
        ([(SECOND, 1), (None, 1), (FIRST, 1)], [[(0, 1, SECOND), (2, 3, FIRST)], [(0, 1, SECOND)]]),
        ([(SECOND, 0), (FIRST, 2)], [[(0, 2, FIRST)], []]),
    ],
)
def test_rows_of_one_adapter_are_one_segment(rows: list[tuple[Adapter | None, int]], expected: Runs) -> None:
    batch = build_lora_batch(rows)
    assert batch is not None
    for site, (segments, wanted) in enumerate(zip(batch, expected, strict=True)):
        assert [(start, end) for start, end, _ in segments] == [(start, end) for start, end, _ in wanted]
        for segment, (_, _, adapter) in zip(segments, wanted, strict=True):
            assert segment.weights is adapter.sites[site]


def test_batch_without_adapters_has_no_segments() -> None:
    assert build_lora_batch([(None, 3), (None, 1)]) is None
    assert build_lora_batch([]) is None
