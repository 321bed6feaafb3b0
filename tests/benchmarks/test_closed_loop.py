"""Whether an answer is of a version that could give it."""

from __future__ import annotations

import pytest

from tests.benchmarks.closed_loop import Moves


@pytest.mark.parametrize(
    ("digest", "began", "ended", "could"),
    [
        ("a", 0.0, 5.0, True),
        ("a", 11.0, 13.0, True),
        ("a", 13.0, 14.0, False),
        ("b", 5.0, 9.0, False),
        ("b", 9.0, 11.0, True),
        ("b", 13.0, 30.0, True),
        ("a", 21.0, 22.0, True),
        ("c", 0.0, 30.0, False),
    ],
)
def test_a_version_answers_from_the_call_that_moves_to_it_until_the_next_is_served(
    monkeypatch: pytest.MonkeyPatch, digest: str, began: float, ended: float, could: bool
) -> None:
    times = iter((-1.0, 0.0, 10.0, 12.0, 20.0, 23.0))
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    moves = Moves()
    for moved_to in ("a", "b", "a"):
        with moves.to(moved_to):
            pass
    monkeypatch.undo()
    assert moves.could_answer(digest, began, ended) is could
