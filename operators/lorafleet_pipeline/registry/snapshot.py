"""One look at the registry: aliases, stages and tags of an adapter as they are now.

Models without an adapter version (other people's models, prompts) are left out: the controller must
never touch them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lorafleet_contract.aliases import Stage
from lorafleet_contract.exceptions import InvalidName
from lorafleet_contract.mirror import MirroredModel, RegistryMirror
from lorafleet_contract.names import check_adapter_name
from lorafleet_contract.registry import RegisteredModel, RegistryClient
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.change import Change, VersionDeletion, replay, world_of
from lorafleet_pipeline.registry.observed import Observed

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionSnapshot:
    """One version as the registry has it. `updated_at` (unix ms) moves with the stage, not with tags."""

    version: int
    stage: Stage
    updated_at: int
    tags: Mapping[str, str]

    @property
    def digest(self) -> str | None:
        """Digest of the adapter."""
        return self.tags.get(Tag.LORA_DIGEST)

    @property
    def base_digest(self) -> str | None:
        """Digest of the base it belongs to."""
        return self.tags.get(Tag.LORA_BASE_DIGEST)


@dataclass(frozen=True)
class AdapterSnapshot:
    """One adapter as the registry has it."""

    name: str
    aliases: Mapping[str, int]
    versions: Mapping[int, VersionSnapshot]
    observed: Observed | None = None
    created_at: int = 0
    """When the model was made (unix ms): another one may have borne its name before."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Those of the registered model."""

    @property
    def stages(self) -> dict[int, Stage]:
        """Stages other than `None`, by version."""
        return {item.version: item.stage for item in self.versions.values() if item.stage is not Stage.NONE}

    def after(self, changes: Sequence[Change]) -> AdapterSnapshot | None:
        """The adapter once these changes are made; None where one is of a version that the look has not found."""
        world = world_of(self.aliases, self.stages)
        versions = dict(self.versions)
        for change in changes:
            if change.version is not None and change.version not in versions:
                return None
            replay(world, change)
            if isinstance(change, VersionDeletion):
                del versions[change.version]
        held = {number: replace(item, stage=world.stage(number)) for number, item in versions.items()}
        return replace(self, aliases=world.aliases, versions=held)


def read_aliased(client: RegistryClient, name: str) -> AdapterSnapshot | None:
    """Look at one adapter and the versions behind its aliases; None where there is none of that name."""
    mirror = RegistryMirror(client)
    mirror.read_model(name)
    return snapshot_of(mirror.get(name))


def read_fleet(client: RegistryClient) -> list[AdapterSnapshot]:
    """Look at every adapter, with all its versions."""
    return snapshots_of(RegistryMirror(client).look())


def snapshots_of(found: Iterable[MirroredModel]) -> list[AdapterSnapshot]:
    """The adapters among the models that a look has found."""
    return [snapshot for snapshot in map(snapshot_of, found) if snapshot is not None]


def snapshot_of(found: MirroredModel | None) -> AdapterSnapshot | None:
    """One adapter as a look has found it; None where there is no such model, or it is no adapter."""
    if found is None:
        return None
    model, versions = found.model, found.versions.values()
    held = {item.version: VersionSnapshot(item.version, item.stage, item.updated_at, item.tags) for item in versions}
    if not any(item.digest for item in held.values()):
        return None
    try:
        check_adapter_name(model.name)
    except InvalidName as error:
        _logger.warning("registered model ignored: %s", error)
        return None
    aliases = {alias: number for alias, number in model.aliases.items() if number in held}
    return AdapterSnapshot(model.name, aliases, held, _observed(model), model.created_at, model.tags)


def _observed(model: RegisteredModel) -> Observed | None:
    text = model.tags.get(Tag.CONTROLLER_OBSERVED)
    if text is None:
        return None
    try:
        return Observed.from_tag(text)
    except ValueError as error:
        _logger.warning("%s of %s is not readable (%s): starting afresh", Tag.CONTROLLER_OBSERVED, model.name, error)
        return None
