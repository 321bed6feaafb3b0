"""Brings wanted versions up beside those that serve, and moves names to them once they proved themselves.

One task per version: fetch -> load -> smoke generation -> ready. A name moves in one step of the event
loop, requests under way keep the digest they started with, and nothing that fails here touches what
serves already. Level-triggered: every call of `apply` states the whole wish of the registry.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from lorafleet_contract.backoff import Backoff
from lorafleet_contract.manifest import AdapterManifest
from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters.artifacts import Artifacts
from lorafleet_serving.adapters.catalog import Catalog, CatalogAdapter, CatalogVersion
from lorafleet_serving.adapters.residency import Residency
from lorafleet_serving.adapters.trial import Trial
from lorafleet_serving.adapters.watcher import DesiredAdapter, RegisteredVersion, RegistryLook
from lorafleet_serving.exceptions import AdapterRefusal, AdapterTooLarge, FetchFailed, NoRoom

_logger = logging.getLogger(__name__)

_BACKOFF = Backoff(first_s=0.5, longest_s=30.0)


class Rollout:
    """Turns what the registry wants into what the pod serves. Runs on the front's event loop."""

    def __init__(
        self,
        catalog: Catalog,
        artifacts: Artifacts,
        residency: Residency,
        trial: Trial,
        *,
        refusal_recheck_s: float,
        canary_window_s: float,
    ) -> None:
        self._catalog = catalog
        self._artifacts = artifacts
        self._residency = residency
        self._trial = trial
        self._refusal_recheck_s = refusal_recheck_s
        self._canary_window_s = canary_window_s
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._superseded: OrderedDict[str, int] = OrderedDict()
        """The version that served before the one that does, by name; the last move last."""

    @property
    def is_settled(self) -> bool:
        """Whether every wanted version has come to a first result: ready, refused or failed."""
        return all(version.state is not ServeState.LOADING for version in self._catalog.versions())

    def apply(self, look: RegistryLook) -> None:
        """Take over what the registry wants."""
        adapters = self._catalog.adapters
        names = {look.name} if look.name is not None else {*adapters, *look.adapters}
        for name in names:
            desired = look.adapters.get(name)
            if desired is not None:
                adapter = adapters.setdefault(name, CatalogAdapter(name, desired))
                if adapter.noticed_at is None or adapter.desired.champion != desired.champion:
                    adapter.noticed_at = look.noticed_at
                self._apply_one(adapter, desired)
            elif name in adapters:
                self._forget(name)
        if look.name is not None and look.name in adapters:
            # Somebody says that something changed; it may be the files of a version that was refused.
            for version in adapters[look.name].versions.values():
                version.changed.set()
                self._residency.retry(version)
        self._artifacts.keep(frozenset(version.digest for version in self._catalog.versions()))

    def refuse(self, version: CatalogVersion, error: AdapterRefusal) -> None:
        """A version that was ready turned out to be bad: bring it up again from the start, and serve another."""
        if version.state is ServeState.READY:
            self._note(version, ServeState.REFUSED, str(error), lacks_room=isinstance(error, AdapterTooLarge))
            # Whatever proved it good is worth nothing now.
            self._artifacts.distrust(version.digest)
            self._trial.forget(version.digest)
            self._move_name(self._catalog.adapters[version.name])
            self._start(version)

    def stop(self) -> None:
        """End every task."""
        for task in self._tasks.values():
            task.cancel()

    def _apply_one(self, adapter: CatalogAdapter, desired: DesiredAdapter) -> None:
        adapter.desired = desired
        for number in set(adapter.versions) - set(desired.versions):
            self._release(adapter.versions.pop(number))
        for number, registered in desired.versions.items():
            self._update(adapter, number, registered)
        # Before anything is let go: the name may move to another version that is ready.
        self._move_name(adapter)
        wanted = desired.wanted()
        for number, version in adapter.versions.items():
            version.aliases = wanted.get(number, ())
            if number in wanted or number == adapter.serving:
                if version.state is None:
                    version.state = ServeState.LOADING
                    self._start(version)
            elif version.state is not None:
                self._release(version)

    def _update(self, adapter: CatalogAdapter, number: int, registered: RegisteredVersion) -> None:
        version = adapter.versions.get(number)
        if version is None:
            adapter.versions[number] = CatalogVersion(registered)
            return
        before, version.registered = version.registered, registered
        is_edited = before.digest != registered.digest
        # A source cannot be edited: another was registered in its place.
        is_other = before.source != registered.source
        if version.state is ServeState.READY and not is_other:
            # What was verified goes on. Anybody may edit a tag, and an edit alone takes nothing out of service.
            version.registered = replace(registered, digest=before.digest)
            self._note(version, ServeState.READY, _told_edit(before, registered) if is_edited else None)
        elif is_edited or is_other:
            # Not what was looked at: bring up what it is now from the start.
            self._release(version, before.digest)
            version.manifest = version.address = None
        elif before.fingerprint != registered.fingerprint:
            version.changed.set()

    def _forget(self, name: str) -> None:
        self._superseded.pop(name, None)
        for version in self._catalog.adapters.pop(name).versions.values():
            self._release(version)

    def _release(self, version: CatalogVersion, digest: str | None = None) -> None:
        """Stop asking for a version; its bytes leave the engine once nothing uses them."""
        key = (version.registered.name, version.registered.version)
        if task := self._tasks.pop(key, None):
            task.cancel()
        version.state = version.error = None
        version.lacks_room = False
        self._let_go(digest or version.digest)

    def _let_go(self, digest: str) -> None:
        wanted = (item.digest for item in self._catalog.versions() if item.state is not ServeState.REFUSED)
        if digest not in wanted:
            self._residency.let_go(digest)

    def _move_name(self, adapter: CatalogAdapter) -> None:
        before = adapter.serving
        has_moved = adapter.move_name()
        adapter.follow_canary(self._canary_window_s)
        adapter.follow_shadow(self._canary_window_s)
        if has_moved:
            _logger.info("adapter %s: served version %s -> %s", adapter.name, before, adapter.serving)
            if adapter.serving is not None:
                # One that takes over from another is asked for at once; at a start nobody is known to be.
                self._residency.prefetch([adapter.versions[adapter.serving]], evicting=before is not None)
            if before is not None:
                self._superseded[adapter.name] = before
                self._superseded.move_to_end(adapter.name)
                self._residency.pin(self._ways_back())

    def _ways_back(self) -> Iterator[str]:
        """Digests to which a name may be moved back, the last moved first."""
        for name, number in reversed(self._superseded.items()):
            adapter = self._catalog.adapters.get(name)
            version = None if adapter is None else adapter.versions.get(number)
            if version is not None and version.servable:
                yield version.digest

    def _start(self, version: CatalogVersion) -> None:
        key = (version.registered.name, version.registered.version)
        if old := self._tasks.get(key):
            old.cancel()
        self._tasks[key] = asyncio.get_running_loop().create_task(self._bring_up(version), name=f"roll-out-{key}")

    async def _bring_up(self, version: CatalogVersion) -> None:
        """Try until the version is ready. A refusal stands until the version's tags or files change."""
        refused_stamp: str | None = None
        num_failures = 0
        while True:
            fingerprint = version.registered.fingerprint
            version.changed.clear()
            pause_s = self._refusal_recheck_s
            try:
                if await self._attempt(version, refused_stamp):
                    self._become_ready(version)
                    return
            except AdapterRefusal as error:
                refused_stamp = error.stamp
                self._note(version, ServeState.REFUSED, str(error), lacks_room=isinstance(error, AdapterTooLarge))
                self._let_go(version.digest)
            except (FetchFailed, NoRoom) as error:
                num_failures += 1
                pause_s = _retry_pause_s(num_failures)
                if version.state is not ServeState.REFUSED:
                    self._note(version, ServeState.FAILED, str(error), lacks_room=isinstance(error, NoRoom))
            except Exception as error:
                _logger.exception("bringing up %s failed", version.label)
                num_failures += 1
                pause_s = _retry_pause_s(num_failures)
                self._note(version, ServeState.FAILED, f"own error: {error!r}")
            await _wait(version.changed, pause_s)
            if version.registered.fingerprint != fingerprint:
                refused_stamp = None

    async def _attempt(self, version: CatalogVersion, refused_stamp: str | None) -> bool:
        """Fetch, load and test; False when there is nothing new about a refused version."""
        fetched = await self._artifacts.fetch(version, refused_stamp)
        if fetched is None:
            return False
        manifest = AdapterManifest.from_json(fetched.manifest)
        try:
            await self._trial.run(version.digest, self._residency.files(fetched), manifest.prompt)
        except AdapterRefusal as error:
            error.stamp = fetched.stamp
            raise
        version.manifest = manifest
        return True

    def _become_ready(self, version: CatalogVersion) -> None:
        registered = version.registered
        self._tasks.pop((registered.name, registered.version), None)
        self._note(version, ServeState.READY, None)
        self._residency.retry(version)  # It was had a moment ago.
        adapter = self._catalog.adapters[registered.name]
        before = adapter.serving
        self._move_name(adapter)
        self._release_superseded(adapter, before)

    def _release_superseded(self, adapter: CatalogAdapter, number: int | None) -> None:
        """Let go of the version that served until now when no alias asks for it."""
        if number is None or number == adapter.serving:
            return
        version = adapter.versions.get(number)
        if version is not None and not version.aliases:
            self._release(version)

    def _note(self, version: CatalogVersion, state: ServeState, error: str | None, *, lacks_room: bool = False) -> None:
        if (version.state, version.error) != (state, error):
            level = logging.INFO if error is None else logging.WARNING
            _logger.log(level, "%s: %s%s", version.label, state, "" if error is None else f": {error}")
        version.state, version.error, version.lacks_room = state, error, lacks_room


def _told_edit(verified: RegisteredVersion, edited: RegisteredVersion) -> str:
    return (
        f"the tag lora.digest was edited to {edited.digest or 'nothing'}; what was verified, {verified.digest}, "
        "goes on: set the tag back, or register a new version"
    )


def _retry_pause_s(num_failures: int) -> float:
    longest = _BACKOFF.pause_s(num_failures)
    return random.uniform(longest / 2, longest)


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), limit_s)
    except TimeoutError:
        return
