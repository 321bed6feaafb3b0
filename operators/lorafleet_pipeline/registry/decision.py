"""What the controller must do about one adapter, as a pure function.

`decide` looks at the registry as it is, at what was observed before, at the changes that were announced
since, and at the pods; it answers with writes to make, journal entries to keep and what to remember.
Deciding again after the writes were made gives no more writes.

Order of changes: announced changes come in the order in which they were made. What nobody announced is
found by comparing; then stages come first, oldest first, and aliases after them, since a move of an
alias has no time: where both changed unseen, the alias wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime

from lorafleet_contract.aliases import CONTROLLER_ALIASES, STAGE_ALIASES, Alias, Stage
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.actor import Actor, How
from lorafleet_pipeline.registry.audit import AuditEntry
from lorafleet_pipeline.registry.canary import NO_SHARE, SetModelTag, canary_tags, end_canary, kept_share
from lorafleet_pipeline.registry.change import AliasChange, Change, StageChange, World, follow, replay, world_of
from lorafleet_pipeline.registry.observed import Observed
from lorafleet_pipeline.registry.readiness import PodState, fleet_state, taken_by_all
from lorafleet_pipeline.registry.snapshot import AdapterSnapshot, VersionSnapshot

_LASTING_STATES = frozenset({"refused", "failed"})
"""States that stay on a version after the pods let go of it: people look there for the reason."""


@dataclass(frozen=True)
class SetAlias:
    """Point an alias at a version, or remove it where `version` is None."""

    alias: str
    version: int | None


@dataclass(frozen=True)
class SetStage:
    """Move a version to a stage."""

    version: int
    stage: Stage


@dataclass(frozen=True)
class SetTag:
    """Set a version's tag, or remove it where `value` is None."""

    version: int
    key: Tag
    value: str | None


Action = SetAlias | SetStage | SetTag | SetModelTag


@dataclass(frozen=True)
class Decision:
    """Writes in the order in which they are to be made, the journal, and what to remember."""

    actions: tuple[Action, ...]
    observed: Observed
    entries: tuple[AuditEntry, ...] = ()


def is_explained(snapshot: AdapterSnapshot, observed: Observed | None, changes: Sequence[Change]) -> bool:
    """Whether the announced changes lead from what was observed to what is there now."""
    world = World.of(observed or Observed())
    for change in changes:
        replay(world, change)
    return not world.differences(_present(snapshot))


def decide(
    snapshot: AdapterSnapshot,
    observed: Observed | None,
    pods: Sequence[PodState],
    changes: Sequence[Change] = (),
    *,
    now: float,
) -> Decision:
    """Decide about one adapter. `now` is unix time in seconds."""
    before = observed or Observed()
    raw, target = World.of(before), World.of(before)
    if observed is None:
        # Nothing is remembered, so that what the controller set earlier can only be believed.
        target.aliases |= {alias: number for alias, number in snapshot.aliases.items() if alias in CONTROLLER_ALIASES}
    journal = _Journal(snapshot.name, before.serial)
    for change in (*changes, *_unannounced(raw, snapshot, before, changes, now)):
        journal.record(change, raw, target)
    _drop_missing(target, snapshot)
    promoted = _move_live(snapshot, target, pods, journal, now)
    ended = end_canary(snapshot, target.aliases.get(Alias.CHALLENGER), pods)
    canary = _journal_canary(snapshot, before, ended, journal, now)
    actions = (
        *_writes(_present(snapshot), target),
        *canary_tags(snapshot, ended),
        *_serve_tags(snapshot, target, pods, promoted, now),
    )
    after = Observed(journal.serial, target.aliases, target.stages, canary)
    return Decision(actions, after, tuple(journal.entries))


class _Journal:
    """Follows changes and keeps an entry of each that changed something."""

    def __init__(self, name: str, serial: int) -> None:
        self.name = name
        self.serial = serial
        self.entries: list[AuditEntry] = []

    def record(self, change: Change, raw: World, target: World) -> None:
        """Apply a change to both worlds."""
        raw_before, target_before = world_of(raw.aliases, raw.stages), world_of(target.aliases, target.stages)
        replay(raw, change)
        follow(target, change)
        made = raw_before.differences(raw)
        if not isinstance(change, AliasChange):
            # A stage that moved an alias is what people look for in the history of that alias.
            mapped = target_before.differences(target)
            made |= {what: mapped[what] for what in (Alias.CHAMPION, Alias.CHALLENGER) if what in mapped}
        for what, (old, new) in made.items():
            self.add(what, old, new, change.by, change.at)

    def add(self, what: str, before: str | None, after: str | None, by: Actor, at: float) -> None:
        """Keep an entry."""
        self.serial += 1
        self.entries.append(AuditEntry.of(self.name, self.serial, what, before, after, by, at))


def _unannounced(
    raw: World, snapshot: AdapterSnapshot, observed: Observed, changes: Sequence[Change], now: float
) -> Iterator[Change]:
    announced = world_of(raw.aliases, raw.stages)
    for change in changes:
        replay(announced, change)
    present = _present(snapshot)
    unseen = World.of(observed).differences(present)
    # Where the registry still has what we last wrote, our write came after the announced change and hid
    # it: the announced change is what was wanted.
    open_keys = [key for key in announced.differences(present) if key in unseen]
    numbers = [int(key.removeprefix("stage:")) for key in open_keys if key.startswith("stage:")]
    told = {change.version for change in changes if isinstance(change, StageChange)}
    yield from _stage_changes(snapshot, numbers, told)
    for alias in open_keys:
        if not alias.startswith("stage:"):
            yield AliasChange(alias, snapshot.aliases.get(alias), Actor(None, How.ALIAS), now)


def _stage_changes(snapshot: AdapterSnapshot, numbers: Sequence[int], told: Set[int]) -> Iterator[StageChange]:
    """The stage changes that led to the stages of some versions; `told` are versions whose change was announced."""
    changed = [snapshot.versions[number] for number in numbers if number in snapshot.versions]
    tidied = [item for item in changed if _is_tidied(item, snapshot)]
    tidied_at = {item.updated_at for item in tidied}
    # Who tidied up may have been in the stage before: then only what was archived with it tells of the promotion.
    promoted = [item for item in snapshot.versions.values() if item.stage in STAGE_ALIASES and item.version not in told]
    made = {item.version: item for item in changed if item not in tidied}
    made |= {item.version: item for item in promoted if item.updated_at in tidied_at}
    for item in sorted(made.values(), key=lambda item: (item.updated_at, item.version)):
        tidies = item.stage in STAGE_ALIASES and item.updated_at in tidied_at
        yield StageChange(item.version, item.stage, Actor(None, How.STAGE), item.updated_at / 1000, tidies)


def _is_tidied(version: VersionSnapshot, snapshot: AdapterSnapshot) -> bool:
    """Whether a version was archived by the promotion of another: one call gives both the very same time.

    The stage that it left says nothing: the controller may have changed it while that call was under way.
    """
    return version.stage is Stage.ARCHIVED and any(
        other.stage in STAGE_ALIASES and other.updated_at == version.updated_at for other in snapshot.versions.values()
    )


def _present(snapshot: AdapterSnapshot) -> World:
    return world_of(snapshot.aliases, snapshot.stages)


def _drop_missing(target: World, snapshot: AdapterSnapshot) -> None:
    for alias in [alias for alias, number in target.aliases.items() if number not in snapshot.versions]:
        del target.aliases[alias]
    for number in [number for number in target.stages if number not in snapshot.versions]:
        del target.stages[number]


def _move_live(
    snapshot: AdapterSnapshot, target: World, pods: Sequence[PodState], journal: _Journal, now: float
) -> int | None:
    """Move `live` to the champion once every pod serves it; returns the version if it moved."""
    champion = snapshot.versions.get(target.aliases.get(Alias.CHAMPION, 0))
    live = target.aliases.get(Alias.LIVE)
    if champion is None or champion.version == live or not taken_by_all(snapshot.name, champion, pods):
        return None
    target.set_alias(Alias.LIVE, champion.version)
    by = Actor(None, How.PODS)
    journal.add(Alias.LIVE, None if live is None else str(live), str(champion.version), by, now)
    if live is not None:
        target.set_alias(Alias.PREVIOUS, live)
    return champion.version


def _journal_canary(
    snapshot: AdapterSnapshot, before: Observed, ended: str | None, journal: _Journal, now: float
) -> str | None:
    """Keep what became of the canary's share; returns what it is now."""
    share = kept_share(snapshot)
    if share != before.canary:
        journal.add(Tag.ROLLOUT_CANARY, before.canary, share, Actor(None, How.TAG), now)
    if ended is None:
        return share
    journal.add(Tag.ROLLOUT_CANARY, share, NO_SHARE, Actor(None, How.PODS), now)
    return NO_SHARE


def _writes(present: World, target: World) -> Iterator[Action]:
    for key, (_, wanted) in sorted(present.differences(target).items(), key=_urgency):
        if key.startswith("stage:"):
            yield SetStage(int(key.removeprefix("stage:")), Stage(wanted or Stage.NONE))
        else:
            yield SetAlias(key, None if wanted is None else int(wanted))


def _urgency(difference: tuple[str, tuple[str | None, str | None]]) -> tuple[int, str]:
    # What comes back into service first: once the alias leaves it, pods would take it for withdrawn. Then aliases,
    # which pods follow, `previous` before `live`, so that a crash in between leaves no moment at which the way back
    # is lost. Other stages last.
    key, (found, _) = difference
    if key.startswith("stage:"):
        return (-1 if found == Stage.ARCHIVED else 9, key)
    order: list[str] = [Alias.CHAMPION, Alias.PREVIOUS, Alias.LIVE]
    return (order.index(key) if key in order else len(order), key)


def _serve_tags(
    snapshot: AdapterSnapshot, target: World, pods: Sequence[PodState], promoted: int | None, now: float
) -> Iterator[SetTag]:
    if not pods or not all(pod.asked for pod in pods):
        return  # Nothing can be said of pods that were not asked yet.
    wanted = {
        number
        for alias, number in target.aliases.items()
        if alias in tuple(Alias) and target.stage(number) is not Stage.ARCHIVED
    }
    for version in snapshot.versions.values():
        found = fleet_state(snapshot.name, version, pods, wanted=version.version in wanted)
        state, error = (found.state.value, found.error) if found else _unheld(version)
        at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        promoted_at = at if version.version == promoted else version.tags.get(Tag.SERVE_PROMOTED_AT)
        # The state last: who sees it finds the reason there already.
        values = {Tag.SERVE_ERROR: error, Tag.SERVE_PROMOTED_AT: promoted_at, Tag.SERVE_STATE: state}
        for key, value in values.items():
            if version.tags.get(key) != value:
                yield SetTag(version.version, key, value)


def _unheld(version: VersionSnapshot) -> tuple[str | None, str | None]:
    """What remains on a version that no pod holds: the reason, if it was not served."""
    state = version.tags.get(Tag.SERVE_STATE)
    if state not in _LASTING_STATES:
        return None, None
    return state, version.tags.get(Tag.SERVE_ERROR)
