from __future__ import annotations

import pytest

from lorafleet_serving.engine.request import ANONYMOUS, Tenant
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import QueueFull

SMALL, LARGE = Tenant("small", 1.0), Tenant("large", 3.0)


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_requests_beyond_the_limit_are_turned_away() -> None:
    limits = WaitingLimits(2, [ANONYMOUS])
    limits.enter(ANONYMOUS)
    limits.enter(ANONYMOUS)
    with pytest.raises(QueueFull, match="2 requests wait already, the limit is 2"):
        limits.enter(ANONYMOUS)
    limits.leave(ANONYMOUS)
    limits.enter(ANONYMOUS)


def test_tenant_that_fills_the_queue_leaves_others_their_share() -> None:
    limits = WaitingLimits(8, [SMALL, LARGE])
    for _ in range(8):
        limits.enter(LARGE)
    with pytest.raises(QueueFull):
        limits.enter(LARGE)
    for _ in range(2):
        limits.enter(SMALL)
    with pytest.raises(QueueFull):
        limits.enter(SMALL)


def test_limit_of_a_tenant_holds_while_the_queue_has_room() -> None:
    limits = WaitingLimits(8, [ANONYMOUS])
    narrow = Tenant("narrow", max_waiting=1)
    limits.enter(narrow)
    with pytest.raises(QueueFull, match="'narrow'"):
        limits.enter(narrow)
    limits.enter(ANONYMOUS)


@pytest.mark.parametrize(("num_left", "seconds"), [(0, 30), (1, 30), (4, 15), (60, 1), (400, 1)])
def test_told_to_come_back_when_those_who_wait_have_left(num_left: int, seconds: int) -> None:
    clock = Clock()
    limits = WaitingLimits(6, [ANONYMOUS], clock)
    for _ in range(num_left):
        limits.enter(ANONYMOUS)
        limits.leave(ANONYMOUS)
    for _ in range(6):
        limits.enter(ANONYMOUS)
    with pytest.raises(QueueFull) as caught:
        limits.enter(ANONYMOUS)
    assert caught.value.retry_after_s == seconds


def test_what_left_long_ago_does_not_count() -> None:
    clock = Clock()
    limits = WaitingLimits(1, [ANONYMOUS], clock)
    for _ in range(50):
        limits.enter(ANONYMOUS)
        limits.leave(ANONYMOUS)
    clock.now += 11
    limits.enter(ANONYMOUS)
    with pytest.raises(QueueFull) as caught:
        limits.enter(ANONYMOUS)
    assert caught.value.retry_after_s == 30
