"""What the controller does about canaries."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lorafleet_contract.fleet import CanaryReport
from lorafleet_contract.states import ServeState
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.actor import Actor, How
from lorafleet_pipeline.registry.audit import AuditEntry
from lorafleet_pipeline.registry.change import AliasChange
from lorafleet_pipeline.registry.decision import Decision
from tests.pipeline.registry.fleet import Fleet, eventually
from tests.pipeline.registry.registry_model import RegistryModel

BY = Actor("ann", How.CLI)
READY = ServeState.READY


def with_canary(share: str = "0.1") -> RegistryModel:
    """Version 1 serves, and version 2 is its challenger."""
    model = RegistryModel()
    model.make(AliasChange("champion", 1, BY, 1.0))
    model.make(AliasChange("challenger", 2, BY, 1.0))
    model.set_model_tag(Tag.ROLLOUT_CANARY, share)
    told(model, None)
    while model.control().actions:
        pass
    return model


def told(model: RegistryModel, stopped: str | None, *, version: int = 2, share: float = 0.1, url: str = "pod") -> None:
    """Have a pod report its canary."""
    canary = CanaryReport(version, share, 12, stopped)
    model.report(1, (1, READY), (2, READY), url=url, canary=canary)


def entries(decisions: Sequence[Decision]) -> list[tuple[str | None, str | None, How]]:
    return shares([entry for decision in decisions for entry in decision.entries])


def shares(found: Sequence[AuditEntry]) -> list[tuple[str | None, str | None, How]]:
    return [(entry.before, entry.after, entry.how) for entry in found if entry.what == Tag.ROLLOUT_CANARY]


def test_one_that_a_pod_has_stopped_is_ended_with_the_reason() -> None:
    model = with_canary()
    told(model, "3 of its last 3 answers were failed")
    decisions = [model.control(), model.control()]
    assert model.model_tag(Tag.ROLLOUT_CANARY) == "0"
    assert model.model_tag(Tag.ROLLOUT_STOPPED) == "version 2: 3 of its last 3 answers were failed"
    assert entries(decisions) == [("0.1", "0", How.PODS)]
    assert decisions[1].actions == ()


def test_one_pod_of_several_is_enough_and_is_named() -> None:
    model = with_canary()
    told(model, None, url="a")
    told(model, "too slow", url="b")
    model.control()
    assert model.model_tag(Tag.ROLLOUT_CANARY) == "0"
    assert model.model_tag(Tag.ROLLOUT_STOPPED) == "version 2: too slow (b)"


def test_what_is_said_of_an_earlier_challenger_ends_nothing() -> None:
    model = with_canary()
    told(model, "too slow", version=3)
    assert model.control().actions == ()
    assert model.model_tag(Tag.ROLLOUT_CANARY) == "0.1"


def test_what_is_said_of_an_earlier_share_ends_nothing_until_it_is_said_again() -> None:
    model = with_canary()
    model.set_model_tag(Tag.ROLLOUT_CANARY, "0.5")
    told(model, "too slow")
    model.control()
    assert model.model_tag(Tag.ROLLOUT_CANARY) == "0.5"
    told(model, "too slow", share=0.5)
    model.control()
    assert model.model_tag(Tag.ROLLOUT_CANARY) == "0"


def test_a_verdict_without_a_canary_changes_nothing() -> None:
    model = with_canary("0")
    told(model, "too slow")
    assert model.control().actions == ()


def test_the_reason_stays_until_another_canary_begins() -> None:
    model = with_canary()
    told(model, "too slow")
    model.control()
    told(model, None)
    model.control()
    assert model.model_tag(Tag.ROLLOUT_STOPPED) is not None
    model.set_model_tag(Tag.ROLLOUT_CANARY, "0.5")
    decision = model.control()
    assert model.model_tag(Tag.ROLLOUT_STOPPED) is None
    assert model.model_tag(Tag.ROLLOUT_CANARY) == "0.5"
    assert entries([decision]) == [("0", "0.5", How.TAG)]


@pytest.mark.parametrize("share", ["often", "-0.1", "1.01", "nan", "inf", "10%", "0.1" * 4000])
def test_a_share_that_is_none_is_taken_back_and_named(share: str) -> None:
    model = with_canary(share)
    assert model.model_tag(Tag.ROLLOUT_CANARY) == "0"
    reason = model.model_tag(Tag.ROLLOUT_STOPPED)
    assert reason is not None
    assert share[:10] in reason
    assert "0 to 1" in reason


def test_shares_that_people_set_are_journaled_once() -> None:
    model = with_canary()
    assert entries([model.control()]) == []
    model.set_model_tag(Tag.ROLLOUT_CANARY, "0.2")
    assert entries([model.control(), model.control()]) == [("0.1", "0.2", How.TAG)]
    model.set_model_tag(Tag.ROLLOUT_CANARY, None)
    assert entries([model.control(), model.control()]) == [("0.2", None, How.TAG)]


def test_a_canary_that_a_pod_has_stopped_is_ended_in_the_registry(fleet: Fleet) -> None:
    name = fleet.adapter()
    fleet.set_alias(name, "champion", 1)
    fleet.set_alias(name, "challenger", 2)
    fleet.registry.set_model_tag(name, Tag.ROLLOUT_CANARY, "0.1")
    fleet.pod.canaries[name] = CanaryReport(2, 0.1, 9, "too slow")
    fleet.pod.sync(name)
    tags = fleet.registry.get_model
    eventually(lambda: tags(name).tags[Tag.ROLLOUT_CANARY] == "0", "the canary ended")
    assert tags(name).tags[Tag.ROLLOUT_STOPPED] == "version 2: too slow"
    fleet.pod.canaries.clear()
    fleet.pod.sync(name)
    fleet.registry.set_model_tag(name, Tag.ROLLOUT_CANARY, "0.3")
    eventually(lambda: Tag.ROLLOUT_STOPPED not in tags(name).tags, "the reason gone with another canary")
    assert tags(name).tags[Tag.ROLLOUT_CANARY] == "0.3"
    eventually(lambda: len(shares(fleet.audit(name))) == 3, "the journal")
    assert shares(fleet.audit(name)) == [(None, "0.1", How.TAG), ("0.1", "0", How.PODS), ("0", "0.3", How.TAG)]
