"""Names that are told to have changed: each is handed out, in order, and none too often."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from lorafleet_serving.adapters.nudges import BURST, PAUSE_S, Nudges

WAIT_S = 30.0


@dataclass
class Clock:
    """Stands still but where a test moves it."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def _next(nudges: Nudges) -> str | None:
    found = nudges.take(0.0)
    return None if found is None else found.name


def _drained(nudges: Nudges) -> list[str]:
    return [nudge.name for nudge in iter(lambda: nudges.take(0.0), None)]


def test_names_come_in_the_order_in_which_they_were_told_and_once() -> None:
    nudges = Nudges()
    for name in ("b", "a", "b", "c", "a"):
        nudges.put(name)
    assert _drained(nudges) == ["b", "a", "c"]


def test_a_name_that_is_told_while_it_is_looked_at_comes_again() -> None:
    nudges = Nudges()
    nudges.put("a")
    assert _next(nudges) == "a"
    nudges.put("a")
    assert _next(nudges) == "a"


def test_a_thousand_words_in_a_second_are_the_burst_and_few_more() -> None:
    clock = Clock()
    nudges, looks = Nudges(clock), 0
    for _ in range(1000):
        nudges.put("a")
        looks += len(_drained(nudges))
        clock.now += 0.001
    assert BURST < looks <= BURST + 1 / PAUSE_S
    # What was told last is seen as well.
    nudges.put("a")
    clock.now += PAUSE_S
    assert _drained(nudges) == ["a"]


def test_a_name_that_was_told_too_often_keeps_no_other_waiting() -> None:
    nudges = Nudges(Clock())
    for _ in range(BURST):
        nudges.put("noisy")
        assert _next(nudges) == "noisy"
    nudges.put("noisy")
    nudges.put("calm")
    assert _drained(nudges) == ["calm"]


def test_a_quiet_name_has_its_whole_burst_again() -> None:
    clock = Clock()
    nudges = Nudges(clock)
    for _ in range(2):
        for _ in range(BURST):
            nudges.put("a")
            assert _next(nudges) == "a"
        clock.now += BURST * PAUSE_S


def test_who_waits_is_woken_by_a_name_by_its_turn_and_by_the_end() -> None:
    nudges, taken = Nudges(), []

    def take() -> None:
        while (nudge := nudges.take(WAIT_S)) is not None:
            taken.append(nudge.name)
            if len(taken) <= BURST:
                nudges.put("a")
            else:
                nudges.close()

    thread = threading.Thread(target=take)
    thread.start()
    nudges.put("a")
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert taken == ["a"] * (BURST + 1)


def test_a_name_tells_when_it_was_first_told(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((10.0, 11.0, 12.0))
    nudges = Nudges(Clock())
    monkeypatch.setattr("time.time", lambda: next(times))
    nudges.put("a")
    nudges.put("a")
    assert nudges.take(0.0) == ("a", 10.0)
    nudges.put("a")
    assert nudges.take(0.0) == ("a", 12.0)
