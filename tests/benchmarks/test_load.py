"""What is told of loads that were measured several times."""

from __future__ import annotations

from tests.benchmarks.load import summarize


def test_repeats_give_medians_with_their_range_and_every_error() -> None:
    runs = [{"tokens_per_s": rate, "requests": 10.0, "errors": errors} for rate, errors in ((5, 0), (9, 2), (6, 1))]
    assert summarize(runs) == {
        "tokens_per_s": 6,
        "tokens_per_s.least": 5,
        "tokens_per_s.most": 9,
        "requests": 10.0,
        "errors": 3,
    }


def test_a_repeat_that_only_failed_hides_nothing_of_the_others() -> None:
    runs = [{"errors": 4.0}, {"errors": 0.0, "itl_p99_to_p50": 2.5}]
    assert summarize(runs) == {
        "errors": 4.0,
        "itl_p99_to_p50": 2.5,
        "itl_p99_to_p50.least": 2.5,
        "itl_p99_to_p50.most": 2.5,
    }
