from __future__ import annotations

import pytest

from lorafleet_contract.backoff import Backoff


@pytest.mark.parametrize(
    ("num_failures", "pause_s"),
    [(-1, 0.0), (0, 0.0), (1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (6, 15.0), (1026, 15.0), (10**9, 15.0)],
)
def test_pauses_double_up_to_the_longest(num_failures: int, pause_s: float) -> None:
    assert Backoff(first_s=0.5, longest_s=15.0).pause_s(num_failures) == pause_s
