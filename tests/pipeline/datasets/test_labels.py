from __future__ import annotations

import pytest

from lorafleet_pipeline.datasets.labels import near_misses


@pytest.mark.parametrize("typo", ["Positve", "Possitive", "Pozitive", "Postiive", "positive", "Positive "])
def test_rare_label_one_edit_from_a_frequent_one_is_suspect(typo: str) -> None:
    assert near_misses({"Positive": 100, "Negative": 100, typo: 1}) == {typo}


@pytest.mark.parametrize(
    "counts",
    [
        {"1": 500, "2": 1},
        {"-1": 500, "1": 1},
        {"card_arrival": 30, "card_arrivals": 20},
        {"Neutral": 100, "Natural sciences": 1},
        {"C": 100, "C#": 1},
        {},
    ],
)
def test_labels_that_are_meant_are_not_suspect(counts: dict[str, int]) -> None:
    assert not near_misses(counts)
