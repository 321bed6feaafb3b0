"""Decisions over whole histories: however the controller groups its looks, restarts or dies, the last change wins."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_pipeline.registry.actor import Actor, How
from lorafleet_pipeline.registry.change import AliasChange, Change, StageChange
from lorafleet_pipeline.registry.decision import decide
from lorafleet_pipeline.registry.observed import Observed
from tests.pipeline.registry.registry_model import RegistryModel

BY = Actor("ann", How.CLI)

numbers = st.integers(1, 4)
alias_moves = st.builds(
    lambda alias, version: AliasChange(alias, version, BY, 1.0), st.sampled_from(list(Alias)), st.none() | numbers
)
stage_moves = st.builds(
    lambda version, stage, archive: StageChange(version, stage, BY, 1.0, archive),
    numbers,
    st.sampled_from(list(Stage)),
    st.booleans(),
)
changes = alias_moves | stage_moves


def _settled() -> RegistryModel:
    model = RegistryModel()
    model.control()
    return model


def _restart(model: RegistryModel) -> None:
    """What a new process knows: the tag."""
    if model.observed is not None:
        model.observed = Observed.from_tag(model.observed.to_tag())


def _state(model: RegistryModel) -> tuple[dict[str, int], dict[int, Stage]]:
    return model.aliases, model.stages


@given(st.lists(st.tuples(changes, st.booleans(), st.booleans()), max_size=10))
@settings(max_examples=200, deadline=None)
def test_announced_changes_end_alike_in_whatever_batches_they_are_seen(
    history: list[tuple[Change, bool, bool]],
) -> None:
    one_by_one, batched = _settled(), _settled()
    waiting: list[Change] = []
    for change, looks, restarts in history:
        for model in (one_by_one, batched):
            model.make(change)
        one_by_one.control(change)
        waiting.append(change)
        if looks:
            batched.control(*waiting)
            waiting.clear()
            if restarts:
                _restart(batched)
    batched.control(*waiting)
    assert _state(one_by_one) == _state(batched)
    if history:
        _check_last(history[-1][0], batched)


def _check_last(change: Change, model: RegistryModel) -> None:
    if isinstance(change, AliasChange) and change.alias == Alias.CHAMPION:
        assert model.aliases.get(Alias.CHAMPION) == change.version
    elif isinstance(change, StageChange) and change.stage is Stage.PRODUCTION:
        assert model.aliases[Alias.CHAMPION] == change.version
    elif isinstance(change, StageChange) and change.stage is Stage.ARCHIVED:
        assert change.version not in (model.aliases.get(Alias.CHAMPION), model.aliases.get(Alias.CHALLENGER))


@given(st.lists(changes, max_size=8), changes, st.integers(0, 6), st.booleans())
@settings(max_examples=200, deadline=None)
def test_controller_that_dies_between_two_writes_ends_at_the_same_champion(
    history: list[Change], last: Change, num_written: int, announced: bool
) -> None:
    whole, broken = _settled(), _settled()
    for change in history:
        for model in (whole, broken):
            model.make(change)
            model.control(change)
    before = whole.stages
    whole.make(last)
    broken.make(last)
    if isinstance(last, StageChange) and whole.stages == before:
        return  # Entering the stage that it is in already leaves nothing that could be found by looking.
    told = [last] if announced else []
    actions = decide(broken.snapshot, broken.observed, broken.pods, told, now=1000.0).actions
    whole.control(*told)
    for action in actions[:num_written]:
        broken.carry_out(action)
    _restart(broken)
    broken.control()
    assert broken.aliases.get(Alias.CHAMPION) == whole.aliases.get(Alias.CHAMPION)
    assert not broken.control().actions
