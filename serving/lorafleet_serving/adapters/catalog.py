"""What the pod knows about adapters: names, versions, states, and which version a request reaches.

Lives on the front's event loop and is changed by the rollout alone. Bytes are identified by digest
everywhere; two versions may share one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from lorafleet_contract.aliases import Alias
from lorafleet_contract.manifest import AdapterManifest
from lorafleet_contract.names import NamedAdapter
from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters.canary import Canary
from lorafleet_serving.adapters.shadow import Shadow
from lorafleet_serving.adapters.watcher import DesiredAdapter, RegisteredVersion
from lorafleet_serving.exceptions import AdapterNotReady, AdapterWithdrawn, Forbidden, NoRoom, UnknownAdapter

_BARE_NAME_ALIASES = (Alias.CHAMPION, Alias.LIVE)
"""What a bare name reaches: the first of these that is ready."""


class ServedAdapter(Protocol):
    """What answers a request, where it is not the base model."""

    @property
    def name(self) -> str:
        """Name under which it is counted."""
        ...

    @property
    def label(self) -> str:
        """Name in answers."""
        ...

    @property
    def digest(self) -> str:
        """Identity in the engine."""
        ...

    @property
    def manifest(self) -> AdapterManifest | None:
        """Its prompt template and what else came with it; None if it has none."""
        ...


@dataclass
class CatalogVersion:
    """One version of an adapter in this pod. `state` is None while nothing asks for it."""

    registered: RegisteredVersion
    aliases: tuple[str, ...] = ()
    state: ServeState | None = None
    error: str | None = None
    lacks_room: bool = False
    """Whether it is not ready because no tier holds it."""
    manifest: AdapterManifest | None = None
    address: str | None = None
    asked_at: float | None = None
    """Unix time at which the engine was last given a caller's request for it."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have a waiting bring-up try again at once."""

    @property
    def digest(self) -> str:
        """The adapter's digest, as the registry has it."""
        return self.registered.digest

    @property
    def name(self) -> str:
        """Name of the adapter."""
        return self.registered.name

    @property
    def label(self) -> str:
        """The version in answers: `name:version`."""
        return f"{self.name}:{self.registered.version}"

    @property
    def servable(self) -> bool:
        """Whether requests may be sent to it."""
        return self.state is ServeState.READY and not self.registered.withdrawn


@dataclass
class CatalogAdapter:
    """One adapter name. `serving` is the version that the bare name reaches."""

    name: str
    desired: DesiredAdapter
    versions: dict[int, CatalogVersion] = field(default_factory=dict)
    serving: int | None = None
    canary: Canary | None = None
    shadow: Shadow | None = None
    noticed_at: float | None = None
    """Unix time at which the pod heard of the last change of the champion."""
    moved_at: float | None = None
    """Unix time of the last change of `serving`."""

    def aliased(self, alias: str) -> CatalogVersion | None:
        """The version behind an alias, if it is one of this pod's base."""
        return self.versions.get(self.desired.aliases.get(alias, 0))

    def challenger_for(self, key: str) -> CatalogVersion | None:
        """The challenger, if a canary has it answer what goes by a key; never where there is no champion."""
        if self.canary is None or self.serving is None or not self.canary.takes(key):
            return None
        version = self.versions.get(self.canary.version)
        return version if version is not None and version.servable else None

    def follow_canary(self, window_s: float) -> None:
        """Begin, change or end the canary as the registry wants it."""
        version, share = self.aliased(Alias.CHALLENGER), self.desired.canary_share
        if version is None or share <= 0.0 or version.registered.version == self.serving:
            self.canary = None
            return
        pair = (version.registered.version, version.digest)
        if self.canary is not None and (self.canary.version, self.canary.digest) == pair:
            self.canary.share = share
        else:
            self.canary = Canary(self.name, *pair, share, window_s)
        self.canary.follow_champion(None if self.serving is None else self.versions[self.serving].digest)

    def follow_shadow(self, window_s: float) -> None:
        """Begin or end the comparison of champion and shadow as the registry wants it; another pair begins anew."""
        version = self.aliased(Alias.SHADOW)
        if version is None or self.serving is None or version.registered.version == self.serving:
            self.shadow = None
            return
        pair = (self.serving, self.versions[self.serving].digest, version.registered.version, version.digest)
        if self.shadow is None or self.shadow.pair != pair:
            self.shadow = Shadow(*pair, window_s)

    def move_name(self) -> bool:
        """Point the bare name at the best version that is ready; tells whether it moved."""
        before = self.serving
        candidates = [self.aliased(alias) for alias in _BARE_NAME_ALIASES]
        if any(candidates):
            # With no `live` to fall back on, what served until now goes on while a new champion loads.
            candidates.append(self.versions.get(before or 0))
        found = next((item for item in candidates if item is not None and item.servable), None)
        self.serving = None if found is None else found.registered.version
        if self.serving != before:
            self.moved_at = time.time()
        return self.serving != before


class Catalog:
    """All adapters of the pod."""

    def __init__(self) -> None:
        self.adapters: dict[str, CatalogAdapter] = {}
        self.by_hand: dict[str, CatalogVersion] = {}
        """What an administrator loaded, by name; the registry knows nothing of it, and its names come first."""

    def versions(self) -> Iterator[CatalogVersion]:
        """Every version that something asks for."""
        for adapter in self.adapters.values():
            yield from (version for version in adapter.versions.values() if version.state is not None)
        yield from self.by_hand.values()

    def canary_with(self, version: CatalogVersion) -> Canary | None:
        """The canary in which a version's answers count, as champion or as challenger."""
        adapter = self.adapters.get(version.name)
        if adapter is None or adapter.canary is None:
            return None
        number = version.registered.version
        return adapter.canary if number in (adapter.serving, adapter.canary.version) else None

    def shadow_of(self, version: CatalogVersion) -> tuple[Shadow, CatalogVersion] | None:
        """The shadow to which a version's answers are mirrored, as its name's champion."""
        adapter = self.adapters.get(version.name)
        if adapter is None or adapter.shadow is None or adapter.shadow.champion != version.registered.version:
            return None
        mirror = adapter.versions.get(adapter.shadow.version)
        return None if mirror is None or not mirror.servable else (adapter.shadow, mirror)

    def resolve(self, reference: NamedAdapter, key: str | None = None) -> CatalogVersion:
        """The version that a request reaches now.

        Args:
            reference: what it names.
            key: what it goes by where a canary is on; None keeps out of canaries.

        Raises:
            UnknownAdapter: the pod does not know the name, alias or version.
            AdapterWithdrawn: the version was withdrawn.
            AdapterNotReady: it is not loaded, or was refused.
            NoRoom: no tier holds it.
            Forbidden: it is a shadow.
        """
        adapter = self.adapters.get(reference.name)
        if adapter is None and reference.name in self.by_hand:
            return _by_hand(self.by_hand[reference.name], reference)
        if adapter is None:
            raise UnknownAdapter(f"there is no adapter {reference.name!r} for this base model: see /v1/models")
        if reference.version is None and reference.alias in (None, Alias.CHAMPION):
            challenger = None if key is None or reference.alias is not None else adapter.challenger_for(key)
            return _bare(adapter) if challenger is None else challenger
        if reference.alias == Alias.SHADOW:
            raise Forbidden(f"{reference} answers no requests: a shadow only mirrors traffic")
        if reference.version is not None:
            version = adapter.versions.get(reference.version)
        else:
            version = adapter.aliased(str(reference.alias))
        if version is None:
            raise UnknownAdapter(f"there is no {reference} for this base model")
        return _servable(version)


def _by_hand(version: CatalogVersion, reference: NamedAdapter) -> CatalogVersion:
    if reference.version is not None or reference.alias is not None:
        raise UnknownAdapter(f"there is no {reference}: what is loaded by hand has its bare name alone")
    return version


def _bare(adapter: CatalogAdapter) -> CatalogVersion:
    if adapter.serving is not None:
        return _servable(adapter.versions[adapter.serving])
    candidates = [item for alias in _BARE_NAME_ALIASES if (item := adapter.aliased(alias)) is not None]
    if not candidates:
        raise AdapterNotReady(
            f"adapter {adapter.name!r} has no champion for this base model: set the alias 'champion' on a version"
        )
    return _servable(_most_telling(candidates))


def _most_telling(candidates: Iterable[CatalogVersion]) -> CatalogVersion:
    """The candidate whose state explains best why the name is not served: one that was not withdrawn."""
    return min(candidates, key=lambda item: item.registered.withdrawn)


def _servable(version: CatalogVersion) -> CatalogVersion:
    if version.registered.withdrawn:
        raise AdapterWithdrawn(f"{version.label} was withdrawn: its stage is Archived")
    if version.state is ServeState.READY:
        return version
    if version.state is None:
        raise AdapterNotReady(f"{version.label} is not loaded: only versions behind an alias are")
    reason = f": {version.error}" if version.error else ""
    told = f"{version.label} is {version.state.value}{reason}"
    raise NoRoom(told) if version.lacks_room else AdapterNotReady(told)
