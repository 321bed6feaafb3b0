"""Follows the registry: the one source of what a pod should serve.

Level-triggered: each look yields the whole desired state, so that nothing depends on having seen every
change. A nudge only means "look now". A registry that is away changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.exceptions import ContractError, InvalidName, InvalidTag
from lorafleet_contract.mirror import FULL_LOOK_EVERY, MirroredModel, RegistryMirror
from lorafleet_contract.names import check_adapter_name
from lorafleet_contract.registry import ModelVersion, RegistryClient
from lorafleet_contract.tags import OWN_PREFIXES, Tag, canary_share
from lorafleet_serving.adapters.nudges import Nudges

_logger = logging.getLogger(__name__)

_JITTER = 0.2
"""Share of the interval by which looks of many pods drift apart."""


@dataclass(frozen=True)
class RegisteredVersion:
    """What the registry says about one version of an adapter of this pod's base."""

    name: str
    version: int
    digest: str
    source: str
    withdrawn: bool
    """Whether the version was taken out of service: archived, and no champion. The controller takes the alias from
    a version that a person archives; one that MLflow archived to make room for the next champion keeps it until the
    controller has moved it, and must answer until then."""
    fingerprint: str
    """Changes when the tags do, but for those that serving itself writes."""


@dataclass(frozen=True)
class DesiredAdapter:
    """What the registry says about one adapter name."""

    name: str
    aliases: Mapping[str, int]
    versions: Mapping[int, RegisteredVersion]
    canary_share: float = 0.0
    """Of the bare name's requests, those that the challenger answers."""

    @property
    def champion(self) -> int | None:
        """The version that the bare name should reach."""
        return self.aliases.get(Alias.CHAMPION)

    def wanted(self) -> dict[int, tuple[str, ...]]:
        """Versions to hold ready, with the aliases that ask for each."""
        found: dict[int, list[str]] = {}
        for alias in Alias:
            version = self.aliases.get(alias)
            known = self.versions.get(version) if version is not None else None
            if known is not None and not known.withdrawn:
                found.setdefault(known.version, []).append(alias.value)
        return {version: tuple(aliases) for version, aliases in found.items()}


@dataclass(frozen=True)
class RegistryLook:
    """What one look at the registry saw."""

    adapters: Mapping[str, DesiredAdapter]
    name: str | None = None
    """The one name that was looked at; None when all were."""
    noticed_at: float = 0.0
    """Unix time at which somebody said that there is something to see, or the look began by itself."""


class RegistryWatcher:
    """Looks at the registry in a thread of its own and hands on what it sees.

    `on_look` and `on_error` are called from that thread.
    """

    def __init__(
        self,
        client: RegistryClient,
        base_digest: str,
        interval_s: float,
        *,
        on_look: Callable[[RegistryLook], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._mirror = RegistryMirror(client, interval_s * FULL_LOOK_EVERY)
        self._base_digest = base_digest
        self._ours: dict[str, frozenset[int]] = {}
        """Versions of this base, by name, as they were last seen."""
        self._interval_s = interval_s
        self._on_look = on_look
        self._on_error = on_error
        self._nudges = Nudges()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="registry-watcher", daemon=True)

    def start(self) -> None:
        """Begin looking."""
        self._thread.start()

    def stop(self) -> None:
        """End after the look that is under way; does not wait for it."""
        self._stopped = True
        self._nudges.close()

    def nudge(self, name: str) -> None:
        """Look at one name at once, or, where it is told too often, as soon as `Nudges` allows."""
        self._nudges.put(name)

    def look(self) -> RegistryLook:
        """Read the state of every adapter of this base.

        Raises:
            RegistryError: the registry is away or refuses.
        """
        models = self._mirror.look()
        names = {found.model.name for found in models}
        self._ours = {name: ours for name, ours in self._ours.items() if name in names}
        found = map(self._desired, models)
        return RegistryLook({adapter.name: adapter for adapter in found if adapter is not None})

    def look_at(self, name: str) -> RegistryLook:
        """Read the state of one adapter: its aliases, and the versions behind them now and at the last look.

        A version that no alias asks for is as the last look at everything found it, since reading hundreds of them
        would hold up the change that somebody waits for.

        Raises:
            RegistryError: the registry is away or refuses.
        """
        try:
            model = self._mirror.read_model(check_adapter_name(name), with_aliased=True)
        except InvalidName:
            model = None
        if model is None:
            return RegistryLook({}, name)
        found = self._mirror.get(name)
        desired = None if found is None else self._desired(found)
        return RegistryLook({} if desired is None else {name: desired}, name)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped:
            if time.monotonic() >= due:
                self._try(self.look)
                # From the end of a look: a slow registry is not asked without pause.
                due = time.monotonic() + self._interval_s * random.uniform(1 - _JITTER, 1 + _JITTER)
            # One at a time: however many names are told, the look at everything keeps its hour.
            nudge = self._nudges.take(due - time.monotonic())
            if nudge is not None:
                self._try(partial(self.look_at, nudge.name), nudge.received_at)

    def _try(self, look: Callable[[], RegistryLook], noticed_at: float | None = None) -> None:
        noticed_at = time.time() if noticed_at is None else noticed_at
        try:
            self._on_look(replace(look(), noticed_at=noticed_at))
        except ContractError as error:
            self._on_error(str(error))
        except Exception as error:
            _logger.exception("looking at the registry failed")
            self._on_error(f"looking at the registry failed: {error!r}")

    def _desired(self, found: MirroredModel) -> DesiredAdapter | None:
        name, aliases = found.model.name, found.model.aliases
        champion = aliases.get(Alias.CHAMPION)
        # What was one of ours stays so, whatever somebody makes of the tag: the signed manifest tells its base.
        before = self._ours.get(name, frozenset())
        ours = {
            item.version: _registered(item, withdrawn=item.stage is Stage.ARCHIVED and item.version != champion)
            for item in found.versions.values()
            if item.tags.get(Tag.LORA_BASE_DIGEST) == self._base_digest or item.version in before
        }
        self._ours[name] = frozenset(ours)
        if not ours:
            return None
        try:
            check_adapter_name(name)
        except InvalidName as error:
            _logger.warning("registered model ignored: %s", error)
            return None
        return DesiredAdapter(name, dict(aliases), ours, _canary_share(found))


def _canary_share(found: MirroredModel) -> float:
    try:
        return canary_share(found.model.tags)
    except InvalidTag:
        return 0.0  # The controller takes it back, and says why.


def _registered(item: ModelVersion, *, withdrawn: bool) -> RegisteredVersion:
    lasting = sorted((key, value) for key, value in item.tags.items() if not key.startswith(OWN_PREFIXES))
    return RegisteredVersion(
        name=item.name,
        version=item.version,
        digest=item.tags.get(Tag.LORA_DIGEST, ""),
        source=item.source,
        withdrawn=withdrawn,
        fingerprint=hashlib.sha256(repr((lasting, item.source)).encode()).hexdigest(),
    )
