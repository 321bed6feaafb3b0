"""What is told of streams, whatever became of them."""

from __future__ import annotations

from tests.benchmarks.streams import Timings


def test_a_load_that_only_fails_is_told_with_its_errors() -> None:
    timings = Timings(seconds=2.0, errors=["503 b'the engine is starting'", "503 again"])
    assert timings.summary() == {"tokens_per_s": 0.0, "requests": 0.0, "errors": 2.0}
    assert timings.told() == """tokens_per_s 0, 2 errors ["503 b'the engine is starting'"]"""


def test_answers_of_one_token_have_no_time_between_tokens() -> None:
    figures = Timings(ttft=[0.5, 0.1], total=[0.5, 0.1], num_tokens=2, seconds=2.0).summary()
    assert (figures["tokens_per_s"], figures["ttft_mean"], figures["total_p50"]) == (1.0, 0.3, 0.5)
    assert figures["ttft_p99_to_p50"] == 1.0
    assert not [name for name in figures if name.startswith("itl")]
