"""Changes of aliases and stages, and what each of them means for the other.

`World` holds aliases and stages of one adapter. `replay` applies a change as the registry itself did;
`follow` adds what the platform makes of it: stages map to aliases one way, alias moves are mirrored to
the stage. Both are pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorafleet_contract.aliases import CONTROLLER_ALIASES, STAGE_ALIASES, Alias, Stage
from lorafleet_pipeline.registry.actor import Actor
from lorafleet_pipeline.registry.observed import Observed

_ALIAS_STAGES = {alias.value: stage for stage, alias in STAGE_ALIASES.items()}


@dataclass(frozen=True)
class AliasChange:
    """An alias was set, or removed where `version` is None. `at` is unix time in seconds."""

    alias: str
    version: int | None
    by: Actor
    at: float


@dataclass(frozen=True)
class StageChange:
    """A version was moved to a stage, perhaps archiving those that were in it before."""

    version: int
    stage: Stage
    by: Actor
    at: float
    archive_existing: bool = False


@dataclass(frozen=True)
class VersionDeletion:
    """A version was deleted, and its aliases with it."""

    version: int
    by: Actor
    at: float


Change = AliasChange | StageChange | VersionDeletion


@dataclass
class World:
    """Aliases and stages of one adapter; stages in the order of their last change, without `None`."""

    aliases: dict[str, int]
    stages: dict[int, Stage]

    @classmethod
    def of(cls, observed: Observed) -> World:
        """The world as it was last observed."""
        return cls(dict(observed.aliases), dict(observed.stages))

    def stage(self, version: int) -> Stage:
        """Stage of a version."""
        return self.stages.get(version, Stage.NONE)

    def set_stage(self, version: int, stage: Stage) -> None:
        """Move a version to a stage, as the last one that entered it."""
        self.stages.pop(version, None)
        if stage is not Stage.NONE:
            self.stages[version] = stage

    def set_alias(self, alias: str, version: int | None) -> None:
        """Point an alias at a version, or at nothing."""
        if version is None:
            self.aliases.pop(alias, None)
        else:
            self.aliases[alias] = version

    def last_in(self, stage: Stage) -> int | None:
        """The version that entered a stage last."""
        return next((version for version in reversed(self.stages) if self.stages[version] is stage), None)

    def differences(self, other: World) -> dict[str, tuple[str | None, str | None]]:
        """What differs in `other`: alias, or `stage:<version>`, with the value here and there."""
        mine, theirs = self._flat(), other._flat()
        keys = dict.fromkeys((*mine, *theirs))
        return {key: (mine.get(key), theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)}

    def _flat(self) -> dict[str, str]:
        stages = {f"stage:{version}": stage.value for version, stage in self.stages.items()}
        return stages | {alias: str(version) for alias, version in self.aliases.items()}


def replay(world: World, change: Change) -> None:
    """Apply a change as the registry did."""
    match change:
        case AliasChange(alias=alias, version=version):
            world.set_alias(alias, version)
        case StageChange(version=version, stage=stage):
            if change.archive_existing:
                for other in _others_in(world, stage, version):
                    world.set_stage(other, Stage.ARCHIVED)
            world.set_stage(version, stage)
        case VersionDeletion(version=version):
            _forget(world, version)


def follow(world: World, change: Change) -> None:
    """Apply a change together with what the platform makes of it."""
    match change:
        case AliasChange(alias=alias) if alias in CONTROLLER_ALIASES:
            pass  # Only the controller moves these: what others did to them is undone.
        case AliasChange():
            _follow_alias(world, change)
        case StageChange():
            _follow_stage(world, change)
        case VersionDeletion(version=version):
            _forget(world, version)


def _follow_alias(world: World, change: AliasChange) -> None:
    world.set_alias(change.alias, change.version)
    stage = _ALIAS_STAGES.get(change.alias)
    if stage is None:
        return
    # An alias stands on one version, and so does what mirrors it.
    for other in _others_in(world, stage, change.version):
        world.set_stage(other, Stage.NONE)
    if change.version is None or world.stage(change.version) is stage:
        return
    # A version that is champion and challenger at once stands in Production.
    if change.alias == Alias.CHAMPION or world.aliases.get(Alias.CHAMPION) != change.version:
        world.set_stage(change.version, stage)


def _follow_stage(world: World, change: StageChange) -> None:
    if change.archive_existing:
        # Whoever tidies up while promoting does not withdraw: the former version must serve until the
        # new one is taken, and must be there for a rollback.
        for other in _others_in(world, change.stage, change.version):
            world.set_stage(other, Stage.NONE)
    before = world.stage(change.version)
    world.set_stage(change.version, change.stage)
    if change.stage in STAGE_ALIASES:
        world.set_alias(STAGE_ALIASES[change.stage], change.version)
    for stage, alias in STAGE_ALIASES.items():
        leaves = before is stage or change.stage is Stage.ARCHIVED
        if stage is not change.stage and leaves and world.aliases.get(alias) == change.version:
            world.set_alias(alias, world.last_in(stage))


def _forget(world: World, version: int) -> None:
    world.stages.pop(version, None)
    for alias in [alias for alias, number in world.aliases.items() if number == version]:
        del world.aliases[alias]


def _others_in(world: World, stage: Stage, version: int | None) -> list[int]:
    return [other for other, held in world.stages.items() if held is stage and other != version]


def world_of(aliases: Mapping[str, int], stages: Mapping[int, Stage]) -> World:
    """A world of plain mappings."""
    return World(dict(aliases), dict(stages))
