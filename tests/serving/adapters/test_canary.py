"""Who is asked in a canary, and what ends it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters.canary import Canary
from lorafleet_serving.adapters.catalog import CatalogAdapter, CatalogVersion
from lorafleet_serving.adapters.evidence import AnswerSeen
from lorafleet_serving.adapters.watcher import DesiredAdapter, RegisteredVersion

KEYS = [f"user-{number}" for number in range(2000)]
WINDOW_S = 300.0
CHAMPION = "champion"


def make_canary(share: float, *, digest: str = "digest") -> Canary:
    canary = Canary("name", 2, digest, share, WINDOW_S)
    canary.follow_champion(CHAMPION)
    return canary


def adapter_with(champion: int, challenger: int) -> CatalogAdapter:
    """A name with four versions that are ready, of the digests `digest-1` to `digest-4`, and a canary."""
    versions = {number: RegisteredVersion("name", number, f"digest-{number}", "", False, "") for number in range(1, 5)}
    adapter = CatalogAdapter("name", wish(versions, champion, challenger))
    adapter.versions = {number: CatalogVersion(item, state=ServeState.READY) for number, item in versions.items()}
    follow(adapter, champion, challenger)
    return adapter


def wish(versions: Mapping[int, RegisteredVersion], champion: int, challenger: int) -> DesiredAdapter:
    return DesiredAdapter("name", {"champion": champion, "challenger": challenger}, versions, canary_share=0.5)


def follow(adapter: CatalogAdapter, champion: int, challenger: int) -> Canary:
    """The registry wants this now."""
    adapter.desired = wish(adapter.desired.versions, champion, challenger)
    adapter.move_name()
    adapter.follow_canary(WINDOW_S)
    assert adapter.canary is not None
    return adapter.canary


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
        canary.note(AnswerSeen(failed="it broke"), "digest")
    assert canary.stopped is not None
    assert "it broke" in canary.stopped
    assert not taken(canary)


def test_a_champion_that_fails_stops_nobody() -> None:
    canary = make_canary(0.5)
    for _ in range(50):
        canary.note(AnswerSeen(failed="it broke"), CHAMPION)
        canary.note(AnswerSeen(failed="it broke"), "digest")
    assert canary.stopped is None


CUT = AnswerSeen(is_cut=True)


def test_a_challenger_is_measured_by_the_champion_of_now() -> None:
    adapter = adapter_with(champion=1, challenger=2)
    canary = follow(adapter, champion=1, challenger=2)
    for _ in range(100):
        canary.note(AnswerSeen(), "digest-1")
    # The next champion's answers are as long as the challenger's, and nothing is wrong with it.
    assert follow(adapter, champion=3, challenger=2) is canary
    for _ in range(100):
        canary.note(CUT, "digest-3")
        canary.note(CUT, "digest-2")
    assert canary.stopped is None
    assert canary.num_answers == 100


def test_an_answer_that_was_begun_by_another_champion_measures_nobody() -> None:
    adapter = adapter_with(champion=1, challenger=2)
    canary = follow(adapter, champion=3, challenger=2)
    for _ in range(100):
        canary.note(AnswerSeen(), "digest-1")
        canary.note(CUT, "digest-2")
    assert canary.stopped is None


def test_what_a_challenger_answered_beside_another_champion_is_not_held_against_it() -> None:
    adapter = adapter_with(champion=1, challenger=2)
    canary = follow(adapter, champion=1, challenger=2)
    for _ in range(100):
        canary.note(CUT, "digest-1")
        canary.note(CUT, "digest-2")
    # Callers ask for short answers from now on.
    follow(adapter, champion=3, challenger=2)
    for _ in range(100):
        canary.note(AnswerSeen(), "digest-3")
        canary.note(AnswerSeen(), "digest-2")
    assert canary.stopped is None


def test_looks_at_a_registry_where_nothing_moved_leave_the_measure_alone() -> None:
    adapter = adapter_with(champion=1, challenger=2)
    canary = follow(adapter, champion=1, challenger=2)
    for _ in range(100):
        canary.note(AnswerSeen(), "digest-1")
        follow(adapter, champion=1, challenger=2)
        canary.note(CUT, "digest-2")
    assert canary.stopped is not None


def test_another_challenger_begins_a_canary_of_its_own() -> None:
    adapter = adapter_with(champion=1, challenger=2)
    canary = follow(adapter, champion=1, challenger=2)
    assert follow(adapter, champion=1, challenger=4) is not canary
