"""Who is asked in a canary, and what ends it."""

from __future__ import annotations

import pytest

from lorafleet_serving.adapters.canary import Canary
from lorafleet_serving.adapters.evidence import AnswerSeen

KEYS = [f"user-{number}" for number in range(2000)]


def make_canary(share: float, *, digest: str = "digest") -> Canary:
    return Canary("name", 2, digest, share, window_s=300.0)


def taken(canary: Canary) -> set[str]:
    return {key for key in KEYS if canary.takes(key)}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_challenger_gets_its_share(share: float) -> None:
    spread = (share * (1 - share) / len(KEYS)) ** 0.5
    assert len(taken(make_canary(share))) / len(KEYS) == pytest.approx(share, abs=4 * spread)


def test_all_and_nobody_are_shares_too() -> None:
    assert taken(make_canary(1.0)) == set(KEYS)
    assert not taken(make_canary(0.0))


def test_the_same_key_is_answered_alike_by_every_pod() -> None:
    assert taken(make_canary(0.3)) == taken(make_canary(0.3))


def test_a_share_that_grows_takes_nobody_away() -> None:
    assert taken(make_canary(0.1)) < taken(make_canary(0.3))


def test_another_challenger_meets_other_users() -> None:
    both = taken(make_canary(0.1)) & taken(make_canary(0.1, digest="another"))
    assert len(both) < 0.03 * len(KEYS)


def test_a_user_whose_name_is_no_text_has_a_place_too() -> None:
    assert make_canary(1.0).takes("\ud800")


def test_one_that_is_stopped_is_asked_no_more_and_tells_why() -> None:
    canary = make_canary(0.5)
    for _ in range(20):
        canary.note(AnswerSeen(failed="it broke"), is_challenger=True)
    assert canary.stopped is not None
    assert "it broke" in canary.stopped
    assert not taken(canary)


def test_a_champion_that_fails_stops_nobody() -> None:
    canary = make_canary(0.5)
    for _ in range(50):
        canary.note(AnswerSeen(failed="it broke"), is_challenger=False)
        canary.note(AnswerSeen(failed="it broke"), is_challenger=True)
    assert canary.stopped is None
