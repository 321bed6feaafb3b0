"""What is told of a shadow's answers beside the champion's."""

from __future__ import annotations

import pytest

from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters.answer_watch import WatchedAnswer
from lorafleet_serving.adapters.catalog import CatalogAdapter, CatalogVersion
from lorafleet_serving.adapters.evidence import AnswerSeen
from lorafleet_serving.adapters.shadow import Shadow
from lorafleet_serving.adapters.watcher import DesiredAdapter, RegisteredVersion

WINDOW_S = 300.0
FINE = WatchedAnswer(AnswerSeen(first_token_s=0.01, token_s=0.01, mean_logprob=-1.0), (1, 2, 3))


def make_shadow() -> Shadow:
    return Shadow(1, "champion", 2, "digest", WINDOW_S)


def compare(own: WatchedAnswer, num_times: int = 40) -> Shadow:
    shadow = make_shadow()
    for _ in range(num_times):
        shadow.compare(FINE, own)
    return shadow


def test_answers_that_are_alike_are_counted() -> None:
    shadow = compare(FINE)
    shadow.compare(FINE, FINE._replace(token_ids=(1, 2)))
    assert (shadow.num_answers, shadow.num_same, shadow.doubt) == (41, 40, None)


def test_being_slow_is_held_against_no_shadow() -> None:
    slow = AnswerSeen(first_token_s=9.0, token_s=9.0, mean_logprob=-1.0)
    assert compare(FINE._replace(seen=slow)).doubt is None


def test_failures_are_told_and_are_no_answers_alike() -> None:
    shadow = compare(WatchedAnswer(AnswerSeen(failed="it broke"), FINE.token_ids))
    assert shadow.num_same == 0
    assert "it broke" in str(shadow.doubt)


def test_answers_that_it_is_less_sure_of_are_told() -> None:
    unsure = WatchedAnswer(AnswerSeen(mean_logprob=-4.0), FINE.token_ids)
    assert "log-probability" in str(compare(unsure).doubt)


@pytest.mark.parametrize(
    ("champion", "digests"),
    [
        (3, {}),
        (1, {1: "of the same number and another's bytes"}),
        (1, {2: "of the same number and another's bytes"}),
    ],
)
def test_another_champion_or_shadow_is_compared_anew(champion: int, digests: dict[int, str]) -> None:
    adapter = CatalogAdapter("name", DesiredAdapter("name", {}, {}))
    follow(adapter, champion=1)
    before = adapter.shadow
    follow(adapter, champion=1)
    assert adapter.shadow is before is not None
    follow(adapter, champion, digests)
    assert adapter.shadow is not None
    assert adapter.shadow is not before


def follow(adapter: CatalogAdapter, champion: int, digests: dict[int, str] | None = None) -> None:
    """The registry has three versions now, of which the second is the shadow; some have digests of their own."""
    found = {number: (digests or {}).get(number, f"digest-{number}") for number in (1, 2, 3)}
    versions = {number: RegisteredVersion("name", number, digest, "", False, "") for number, digest in found.items()}
    adapter.desired = DesiredAdapter("name", {"champion": champion, "shadow": 2}, versions)
    adapter.versions = {number: CatalogVersion(item, state=ServeState.READY) for number, item in versions.items()}
    adapter.move_name()
    adapter.follow_shadow(WINDOW_S)
