"""Promotion and rollback against a real registry with its controller, and a pod over HTTP."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorafleet_contract.states import GateStatus
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import GateRefused, PromotionError, PromotionTimeout
from lorafleet_pipeline.registry.actor import Actor, How
from lorafleet_pipeline.registry.history import history
from lorafleet_pipeline.registry.overview import fleet_overview
from lorafleet_pipeline.registry.promotion import promote, rollback
from tests.pipeline.registry.fleet import GATE_KEY, Fleet, digest_of, eventually

ANN = Actor("ann", How.CLI)


@pytest.fixture
def name(fleet: Fleet) -> str:
    """An adapter with three versions that passed their gates."""
    adapter = fleet.adapter()
    for version in (1, 2, 3):
        fleet.set_gate(adapter, version, GateStatus.PASSED)
    return adapter


def test_promotion_returns_when_every_pod_serves_the_digest(fleet: Fleet, name: str) -> None:
    seen: list[str] = []
    result = promote(name, 2, fleet.settings, actor=ANN, on_progress=lambda pods: seen.extend(pods.values()))
    assert (result.version, result.before, result.digest) == (2, None, digest_of(2))
    assert result.pods == (fleet.pod.url,)
    assert seen[-1] == "ready"
    again = promote(name, 2, fleet.settings, actor=ANN)
    assert again.before == 2
    eventually(lambda: fleet.aliases(name) == {"champion": 2, "live": 2}, "live")


def test_rollback_goes_to_previous_and_back_again(fleet: Fleet, name: str) -> None:
    for version in (1, 2):
        promote(name, version, fleet.settings, actor=ANN)
        eventually(lambda: fleet.aliases(name).get("live") == fleet.aliases(name)["champion"], "live")
    for expected in (1, 2):
        assert rollback(name, fleet.settings, actor=ANN).version == expected
        eventually(lambda: fleet.aliases(name).get("live") == fleet.aliases(name)["champion"], "live")
    assert rollback(name, fleet.settings, to=3, actor=ANN).version == 3


def test_rollback_of_a_refused_champion_goes_to_live(fleet: Fleet, name: str) -> None:
    for version in (1, 2):
        promote(name, version, fleet.settings, actor=ANN)
        eventually(lambda: fleet.aliases(name).get("live") == fleet.aliases(name)["champion"], "live")
    fleet.pod.refusals[name, 3] = "rank 512 is above the limit"
    with pytest.raises(PromotionError, match=r"refuses version 3 .*rank 512 is above the limit.*rollback"):
        promote(name, 3, fleet.settings, actor=ANN)
    assert rollback(name, fleet.settings, actor=ANN).version == 2


def test_refusal_that_stood_before_is_given_time_to_change(fleet: Fleet, name: str) -> None:
    promote(name, 1, fleet.settings, actor=ANN)
    fleet.pod.refusals[name, 2] = "gate did not pass"
    with pytest.raises(PromotionError):
        promote(name, 2, fleet.settings, actor=ANN)
    del fleet.pod.refusals[name, 2]
    fleet.registry.delete_alias(name, "champion")
    assert promote(name, 2, fleet.settings, actor=ANN).version == 2


def test_gate_that_failed_is_refused_with_its_check_and_can_be_waived(fleet: Fleet, name: str) -> None:
    fleet.set_gate(name, 2, GateStatus.FAILED)
    with pytest.raises(GateRefused, match=r"min_lift \(0\.01 < 0\.05\)"):
        promote(name, 2, fleet.settings, actor=ANN)
    assert "champion" not in fleet.aliases(name)
    assert promote(name, 2, fleet.settings, actor=ANN, waive="a demo for the board").version == 2
    tags = fleet.tags(name, 2)
    assert (tags[Tag.GATE_STATUS], tags[Tag.GATE_WAIVED_BY]) == ("waived", "ann")
    assert tags[Tag.GATE_REASON] == "a demo for the board"
    # The report itself says so, signed: without the waiver it is promoted from now on.
    assert promote(name, 2, fleet.settings, actor=ANN).before == 2


def test_forged_gate_is_refused(fleet: Fleet, name: str) -> None:
    fleet.set_gate(name, 2, GateStatus.FAILED)
    fleet.registry.set_version_tag(name, 2, Tag.GATE_STATUS, "passed")
    with pytest.raises(GateRefused, match="min_lift"):
        promote(name, 2, fleet.settings, actor=ANN)
    fleet.set_gate(name, 2, GateStatus.PASSED, key=f"not-the-{GATE_KEY}")
    with pytest.raises(GateRefused, match="LORAFLEET_GATE_KEY"):
        promote(name, 2, fleet.settings, actor=ANN)
    fleet.registry.set_version_tag(name, 3, Tag.LORA_DIGEST, digest_of(9))
    with pytest.raises(GateRefused, match="evaluate and register it again"):
        promote(name, 3, fleet.settings, actor=ANN)
    assert fleet.aliases(name) == {}


def test_slow_pod_is_named_after_the_limit(fleet: Fleet, name: str) -> None:
    fleet.pod.loading.add((name, 1))
    with pytest.raises(PromotionTimeout, match=f"{fleet.pod.url}: loading"):
        promote(name, 1, fleet.settings, actor=ANN, wait_s=0.5)
    assert fleet.aliases(name) == {"champion": 1}


def test_impossible_promotions_name_the_remedy(fleet: Fleet, name: str) -> None:
    with pytest.raises(PromotionError, match="no version 9"):
        promote(name, 9, fleet.settings, actor=ANN)
    with pytest.raises(PromotionError, match="no version 1 of 'nobody'"):
        promote("nobody", 1, fleet.settings, actor=ANN)
    with pytest.raises(PromotionError, match="controller alone"):
        promote(name, 1, fleet.settings, alias="live", actor=ANN)
    with pytest.raises(PromotionError, match="no previous version"):
        rollback(name, fleet.settings, actor=ANN)
    with pytest.raises(PromotionError, match="no adapter 'nobody'"):
        rollback("nobody", fleet.settings, actor=ANN)
    with pytest.raises(PromotionError, match="no adapter 'nobody'"):
        history("nobody", fleet.settings)
    with pytest.raises(PromotionError, match="LORAFLEET_ADMIN_TOKEN"):
        promote(name, 1, replace(fleet.settings, admin_token="wrong"), actor=ANN)
    assert fleet.aliases(name) == {}


def test_challenger_is_awaited_without_serving_the_name(fleet: Fleet, name: str) -> None:
    promote(name, 1, fleet.settings, actor=ANN)
    assert promote(name, 2, fleet.settings, alias="challenger", actor=ANN).pods == (fleet.pod.url,)
    eventually(lambda: fleet.stages(name)[2] == "Staging", "the mirrored stage")
    assert fleet.aliases(name)["champion"] == 1


def test_base_that_no_pod_serves_is_promoted_without_pods(fleet: Fleet) -> None:
    other = fleet.adapter(base_digest="sha256:" + "c" * 64)
    fleet.set_gate(other, 1, GateStatus.PASSED)
    assert promote(other, 1, fleet.settings, actor=ANN).pods == ()


def test_history_and_overview_tell_what_happened_and_what_stands(fleet: Fleet, name: str) -> None:
    for version in (1, 2):
        promote(name, version, fleet.settings, actor=ANN)
        eventually(lambda: fleet.aliases(name).get("live") == fleet.aliases(name)["champion"], "live")
    eventually(lambda: len(fleet.audit(name)) == 4, "four entries")
    told = [
        (item.what, item.before, item.after, item.how, item.who, item.is_current)
        for item in history(name, fleet.settings)
    ]
    assert told == [
        ("champion", None, "1", How.CLI, "ann", False),
        ("live", None, "1", How.PODS, None, False),
        ("champion", "1", "2", How.CLI, "ann", True),
        ("live", "1", "2", How.PODS, None, True),
    ]
    assert len(history(name, fleet.settings, limit=1)) == 1
    overview = fleet_overview(replace(fleet.settings, pods=(fleet.pod.url, "http://127.0.0.1:9")))
    shown = next(item for item in overview.adapters if item.name == name)
    assert (shown.aliases["live"], shown.serving, shown.gate) == (2, {fleet.pod.url: 2}, "passed")
    assert list(overview.silent_pods) == ["http://127.0.0.1:9"]


def test_rollback_passes_over_a_version_that_was_withdrawn(fleet: Fleet, name: str) -> None:
    for version in (1, 2):
        promote(name, version, fleet.settings, actor=ANN)
        eventually(lambda: fleet.aliases(name).get("live") == fleet.aliases(name)["champion"], "live")
    fleet.set_stage(name, 2, "Archived")
    eventually(lambda: "champion" not in fleet.aliases(name), "the withdrawal")
    assert rollback(name, fleet.settings, actor=ANN).version == 1
    eventually(lambda: fleet.stages(name) == {1: "Production", 2: "Archived", 3: "None"}, "2 still withdrawn")


def test_waiver_whose_tags_were_lost_is_completed(fleet: Fleet, name: str) -> None:
    fleet.set_gate(name, 2, GateStatus.FAILED)
    promote(name, 2, fleet.settings, actor=ANN, waive="a demo for the board")
    fleet.registry.set_version_tag(name, 2, Tag.GATE_STATUS, "failed")
    promote(name, 2, fleet.settings, actor=ANN)
    assert fleet.tags(name, 2)[Tag.GATE_STATUS] == "waived"
