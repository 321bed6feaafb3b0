"""The controller's decisions, announced (as inside MLflow) and found by comparing (as beside it)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.states import ServeState
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.actor import Actor, How
from lorafleet_pipeline.registry.change import AliasChange, Change, StageChange, VersionDeletion
from lorafleet_pipeline.registry.decision import SetAlias, SetStage, SetTag, is_explained
from lorafleet_pipeline.registry.readiness import PodState
from tests.pipeline.registry.registry_model import RegistryModel

BY = Actor("ann", How.CLI)


def alias(name: str, version: int | None) -> AliasChange:
    return AliasChange(name, version, BY, 1.0)


def stage(version: int, to: Stage, *, archive_existing: bool = False) -> StageChange:
    return StageChange(version, to, BY, 1.0, archive_existing)


def play(changes: list[Change], *, announced: bool) -> RegistryModel:
    """Make changes one by one, the controller looking after each."""
    model = RegistryModel()
    model.control()
    for change in changes:
        model.make(change)
        model.control(*([change] if announced else []))
    return model


P, S, A, N = Stage.PRODUCTION, Stage.STAGING, Stage.ARCHIVED, Stage.NONE


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("changes", "aliases", "stages"),
    [
        ([stage(2, P)], {"champion": 2}, {2: P}),
        ([stage(2, S)], {"challenger": 2}, {2: S}),
        ([stage(2, P), stage(3, P)], {"champion": 3}, {2: P, 3: P}),
        ([stage(3, P), stage(2, P), stage(2, N)], {"champion": 3}, {3: P}),
        ([stage(2, P), stage(2, S)], {"challenger": 2}, {2: S}),
        ([stage(2, S), stage(2, P)], {"champion": 2}, {2: P}),
        ([stage(2, P), stage(2, A)], {}, {2: A}),
        ([stage(1, P), stage(2, P), stage(2, A)], {"champion": 1}, {1: P, 2: A}),
        ([stage(2, P), stage(3, P, archive_existing=True)], {"champion": 3}, {3: P}),
        ([stage(2, P), stage(3, P), stage(2, P, archive_existing=True)], {"champion": 2}, {2: P}),
        ([stage(2, P), stage(3, P), stage(3, P, archive_existing=True)], {"champion": 3}, {3: P}),
        ([alias("champion", 2)], {"champion": 2}, {2: P}),
        ([alias("champion", 2), alias("champion", 3)], {"champion": 3}, {3: P}),
        ([alias("champion", 2), alias("champion", None)], {}, {}),
        ([stage(1, P), stage(2, P), alias("champion", 3)], {"champion": 3}, {3: P}),
        ([stage(1, P), stage(2, P), alias("champion", None)], {}, {}),
        ([stage(2, A), alias("champion", 2)], {"champion": 2}, {2: P}),
        ([alias("champion", 2), alias("challenger", 2)], {"champion": 2, "challenger": 2}, {2: P}),
        ([alias("challenger", 2), alias("champion", 2)], {"champion": 2, "challenger": 2}, {2: P}),
        ([alias("shadow", 2)], {"shadow": 2}, {}),
        ([stage(2, P), alias("champion", 1), stage(3, P)], {"champion": 3}, {1: P, 3: P}),
        ([alias("live", 2)], {}, {}),
    ],
)
def test_stage_and_alias_follow_each_other(
    changes: list[Change], aliases: dict[str, int], stages: dict[int, Stage], announced: bool
) -> None:
    model = play(changes, announced=announced)
    assert (model.aliases, model.stages) == (aliases, stages)


def test_of_unseen_changes_the_alias_wins_over_the_stage() -> None:
    model = RegistryModel()
    model.control()
    model.make(stage(2, P))
    model.make(alias("champion", 3))
    decision = model.control()
    assert model.aliases == {"champion": 3}
    assert model.stages == {3: P}
    assert [(entry.what, entry.after) for entry in decision.entries if entry.what == "champion"] == [
        ("champion", "2"),
        ("champion", "3"),
    ]


def test_announced_changes_are_taken_in_their_order() -> None:
    model = RegistryModel()
    model.control()
    changes: list[Change] = [alias("champion", 3), stage(2, P)]
    for change in changes:
        model.make(change)
    model.control(*changes)
    assert model.aliases == {"champion": 2}


def test_announced_move_that_our_own_write_hid_is_made_again() -> None:
    model = RegistryModel()
    model.make(alias("champion", 2))
    model.control()
    # Someone moved the alias to 4 while the controller, which had seen a stage, set it to 3 over it.
    model.observed = model.control(stage(3, P)).observed
    model.make(stage(3, P))
    model.control(alias("champion", 4))
    assert model.aliases == {"champion": 4}


def test_difference_is_explained_by_the_announcements_that_led_to_it() -> None:
    model = RegistryModel()
    model.control()
    model.make(stage(1, P))
    model.make(stage(2, P, archive_existing=True))
    changes = [stage(1, P), stage(2, P, archive_existing=True)]
    assert is_explained(model.snapshot, model.observed, changes)
    assert not is_explained(model.snapshot, model.observed, changes[:1])


def test_live_waits_for_every_pod() -> None:
    model = RegistryModel()
    model.make(alias("champion", 2))
    model.serve(2, "pod-a")
    model.report(None, (2, ServeState.LOADING), url="pod-b")
    model.control()
    assert model.aliases == {"champion": 2}
    assert model.tag(2, Tag.SERVE_STATE) == "loading"
    model.serve(2, "pod-b")
    model.control()
    assert model.aliases == {"champion": 2, "live": 2}
    assert model.tag(2, Tag.SERVE_STATE) == "ready"
    assert model.tag(2, Tag.SERVE_PROMOTED_AT) is not None


def test_what_an_archiving_promotion_displaced_is_back_in_service_before_the_alias_leaves_it() -> None:
    model = RegistryModel()
    model.make(alias("champion", 1))
    model.control()
    promotion = stage(2, P, archive_existing=True)
    model.make(promotion)
    moves = [action for action in model.control(promotion).actions if not isinstance(action, SetTag)]
    assert moves == [SetStage(1, N), SetAlias("champion", 2)]


def test_move_of_the_alias_after_an_archiving_promotion_wins_though_the_promotion_was_seen_late() -> None:
    model = RegistryModel()
    model.make(stage(1, P))
    model.control()
    model.make(alias("champion", 2))
    model.control()
    changes: list[Change] = [stage(3, P, archive_existing=True), alias("champion", 4)]
    for change in changes:
        model.make(change)
    archived = replace(model.snapshot.versions[1], stage=A, updated_at=model.snapshot.versions[3].updated_at)
    model.snapshot = replace(model.snapshot, versions={**model.snapshot.versions, 1: archived})
    model.control(*changes)
    assert model.aliases == {"champion": 4}
    assert model.stages == {4: P}


@pytest.mark.parametrize("announced", [True, False])
def test_what_an_archiving_promotion_displaced_is_not_withdrawn_though_its_stage_was_written_meanwhile(
    announced: bool,
) -> None:
    model = RegistryModel()
    promotion = stage(3, P, archive_existing=True)
    model.make(stage(1, P))
    model.control()
    model.make(alias("champion", 2))
    model.control()
    model.make(promotion)
    # The promotion had read version 1 in Production before the controller took it out, and wrote it after that.
    archived = replace(model.snapshot.versions[1], stage=A, updated_at=model.snapshot.versions[3].updated_at)
    model.snapshot = replace(model.snapshot, versions={**model.snapshot.versions, 1: archived})
    model.control(*([promotion] if announced else []))
    assert model.aliases == {"champion": 3}
    assert model.stages == {3: P}


def test_previous_is_the_live_before_and_a_rollback_swaps_them() -> None:
    model = RegistryModel()
    for version in (1, 2, 1):
        model.make(alias("champion", version))
        model.serve(version)
        model.control()
    assert model.aliases == {"champion": 1, "live": 1, "previous": 2}


def test_refusal_keeps_live_and_names_the_pod() -> None:
    model = RegistryModel()
    model.make(alias("champion", 1))
    model.serve(1, "pod-a")
    model.serve(1, "pod-b")
    model.control()
    model.make(alias("champion", 2))
    model.report(1, (1, ServeState.READY), (2, ServeState.REFUSED), url="pod-b")
    model.control()
    assert model.aliases == {"champion": 2, "live": 1}
    assert model.tag(2, Tag.SERVE_STATE) == "refused"


@pytest.mark.parametrize("missing", [Tag.LORA_DIGEST, Tag.LORA_BASE_DIGEST])
def test_alias_on_what_is_no_adapter_is_refused_at_once(missing: Tag) -> None:
    """No pod ever takes it, so nobody is to wait for one."""
    model = RegistryModel()
    model.serve(1)
    model.make(alias("champion", 1))
    model.control()
    alien = model.snapshot.versions[2]
    tags = {tag: text for tag, text in alien.tags.items() if tag != missing}
    model.snapshot = replace(model.snapshot, versions={**model.snapshot.versions, 2: replace(alien, tags=tags)})
    model.make(alias("champion", 2))
    model.control()
    assert model.tag(2, Tag.SERVE_STATE) == "refused"
    assert missing in str(model.tag(2, Tag.SERVE_ERROR))
    assert model.aliases[Alias.LIVE] == 1


def test_pod_that_does_not_answer_holds_live_back() -> None:
    model = RegistryModel()
    model.make(alias("champion", 1))
    model.serve(1, "pod-a")
    model.pods.append(PodState("pod-b", None, "connection refused"))
    model.control()
    assert model.aliases == {"champion": 1}
    assert model.tag(1, Tag.SERVE_STATE) == "loading"
    assert model.tag(1, Tag.SERVE_ERROR) == "pod-b: does not answer: connection refused"


def test_pods_of_another_base_have_no_say() -> None:
    model = RegistryModel()
    model.make(alias("champion", 1))
    model.serve(1, "pod-a")
    model.report(None, url="pod-b", base="sha256:other")
    model.control()
    assert model.aliases == {"champion": 1, "live": 1}


def test_nothing_is_said_of_pods_that_were_not_asked_yet() -> None:
    model = RegistryModel()
    model.make(alias("champion", 1))
    model.pods = [PodState("pod")]
    model.control()
    assert model.tag(1, Tag.SERVE_STATE) is None
    assert model.aliases == {"champion": 1}


def test_lost_memory_believes_what_the_registry_has() -> None:
    model = RegistryModel()
    for version in (1, 2):
        model.make(alias("champion", version))
        model.serve(version)
        model.control()
    model.observed = None
    model.control()
    assert model.aliases == {"champion": 2, "live": 2, "previous": 1}


changes = st.one_of(
    st.builds(alias, st.sampled_from(list(Alias)), st.one_of(st.none(), st.integers(1, 4))),
    st.builds(stage, st.integers(1, 4), st.sampled_from(list(Stage))),
    st.builds(lambda number: stage(number, P, archive_existing=True), st.integers(1, 4)),
)
pod_moves = st.tuples(st.sampled_from(["pod-a", "pod-b"]), st.integers(1, 4), st.sampled_from(list(ServeState)))


@given(st.lists(st.one_of(changes, pod_moves), max_size=25), st.booleans())
@settings(max_examples=150, deadline=None)
def test_deciding_is_idempotent_and_live_was_served_by_all(
    events: list[Change | tuple[str, int, ServeState]], announced: bool
) -> None:
    model = RegistryModel()
    model.serve(1, "pod-a")
    model.serve(1, "pod-b")
    model.control()
    serving: dict[str, int | None] = {"pod-a": 1, "pod-b": 1}
    taken: set[int] = set()
    for event in events:
        if isinstance(event, tuple):
            url, version, state = event
            serving[url] = version if state is ServeState.READY else None
            model.report(serving[url], (version, state), url=url)
        else:
            model.make(event)
        if len(set(serving.values())) == 1:
            taken |= {version for version in serving.values() if version is not None}
        model.control(*([event] if announced and not isinstance(event, tuple) else []))
        again = model.control()
        assert not again.actions
        assert not again.entries
        _check(model, taken)


def _check(model: RegistryModel, taken: set[int]) -> None:
    live, previous = model.aliases.get(Alias.LIVE), model.aliases.get(Alias.PREVIOUS)
    assert live is None or live in taken
    assert previous is None or previous in taken
    assert previous is None or previous != live
    champion = model.aliases.get(Alias.CHAMPION)
    assert champion is None or model.stages[champion] is P
    production = [number for number, held in model.stages.items() if held is P]
    assert champion is not None or not production


@given(st.lists(changes, max_size=12))
@settings(max_examples=100, deadline=None)
def test_audit_log_tells_the_champion_without_a_gap(made: list[Change]) -> None:
    model = RegistryModel()
    model.control()
    told: str | None = None
    for change in [*made, VersionDeletion(4, BY, 1.0)]:
        model.make(change)
        for entry in model.control(change).entries:
            if entry.what == Alias.CHAMPION:
                assert entry.before == told
                told = entry.after
    assert told == (str(model.aliases["champion"]) if "champion" in model.aliases else None)
