"""Has the versions in the engine that requests ask for, wherever their bytes are when they are asked for.

A request waits for its own adapter alone, counts as waiting while it does, and holds it from then on. What the engine
loses when it dies comes back by itself, the last used first, where nobody asks for it before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from lorafleet_serving.adapters.artifacts import Artifacts
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.adapters.fetch_failures import FetchFailures
from lorafleet_serving.adapters.host import AdapterFiles, HostTier
from lorafleet_serving.adapters.messages import Fetched, HandFetched, Merged
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.engine.request import Tenant
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import (
    AdapterNotReady,
    AdapterRefusal,
    FetchFailed,
    FilesGone,
    NoRoom,
    PodUnavailable,
)

_MOST_TRIES = 3
"""Loads that one request may see fail for no fault of its version."""


class Residency:
    """Loads versions on demand. Runs on the front's event loop.

    `on_refused` is told of a version that turns out not to be what it was when it became ready.
    """

    def __init__(
        self,
        host: HostTier,
        engine: EngineHandle,
        artifacts: Artifacts,
        limits: WaitingLimits,
        on_refused: Callable[[CatalogVersion, AdapterRefusal], None],
        *,
        recheck_s: float,
    ) -> None:
        """`recheck_s` is the longest time for which what could not be had is not tried again."""
        self._host = host
        self._engine = engine
        self._artifacts = artifacts
        self._limits = limits
        self._on_refused = on_refused
        self._failures = FetchFailures(recheck_s)
        self._wanted: dict[str, tuple[CatalogVersion, bool]] = {}
        """What is to be prefetched, and whether others may have to leave for it."""
        self._prefetching: asyncio.Task[None] | None = None

    async def load(self, version: CatalogVersion, tenant: Tenant) -> None:
        """Have a version in the engine for a request that has a lease on its digest.

        Raises:
            AdapterNotReady: it is refused now.
            NoRoom: what is held leaves no room for it in a tier.
            PodUnavailable: the engine is down, or the files cannot be had now.
            QueueFull: too many wait already, of all or of the tenant.
        """
        if self._host.holds(version.digest):
            return await self._load(version)
        with self._limits.waiting(tenant):
            return await self._load(version)

    async def bring(self, version: CatalogVersion) -> AdapterFiles:
        """Have a version's files on disk.

        Raises:
            AdapterRefusal, NoRoom: as `Artifacts.have` does.
            FetchFailed: as `Artifacts.have` does, or at once where that failed a moment ago.
        """
        self._failures.check(version)
        try:
            found = await self._artifacts.have(version)
        except FilesGone:
            raise  # They were there a moment ago.
        except FetchFailed as error:
            self._failures.note(version, error)
            raise
        self._failures.forget(version)
        return self.files(found)

    def retry(self, version: CatalogVersion) -> None:
        """Somebody says that what could not be had may be there now: try when it is next asked for."""
        self._failures.forget(version)

    def files(self, fetched: Fetched | HandFetched | Merged) -> AdapterFiles:
        """Where what was fetched or merged is, and what it will take in the engine."""
        item_bytes = self._engine.facts.item_bytes if self._engine.facts is not None else 1
        return AdapterFiles(fetched.folder, fetched.num_elements * item_bytes)

    async def load_where_free(self, version: CatalogVersion) -> bool:
        """Have a version in the engine, unless others would have to leave for it; tells whether it is there."""
        if not self._host.holds(version.digest):
            # Nobody waits for it: whoever asks finds out for himself what is wrong.
            with suppress(AdapterNotReady, AdapterRefusal, FetchFailed, NoRoom, PodUnavailable):
                await self._prefetch(version, evicting=False)
        return self._host.holds(version.digest)

    def prefetch(self, versions: Iterable[CatalogVersion], *, evicting: bool) -> None:
        """Have versions in the engine before anybody asks, one after the other, in order.

        Args:
            versions: those that are not there yet.
            evicting: whether others may have to leave for them.
        """
        self._wanted |= {version.digest: (version, evicting) for version in versions}
        if self._wanted and (self._prefetching is None or self._prefetching.done()):
            self._prefetching = asyncio.get_running_loop().create_task(self._prefetch_all(), name="prefetch")

    def pin(self, digests: Iterable[str]) -> None:
        """Set what is to stay in the engine although nobody asks for it, the most important first."""
        self._host.pin(tuple(digests))

    def let_go(self, digest: str) -> None:
        """Let an adapter go that no version is served with."""
        self._failures.forget_digest(digest)
        self._host.let_go(digest)

    def stop(self) -> None:
        """Prefetch no more."""
        if self._prefetching is not None:
            self._prefetching.cancel()

    async def _prefetch_all(self) -> None:
        while self._wanted:
            digest = next(iter(self._wanted))
            version, evicting = self._wanted.pop(digest)
            if version.servable and not self._host.holds(digest):
                # Nobody waits for it: whoever asks finds out for himself what is wrong.
                with suppress(AdapterNotReady, AdapterRefusal, FetchFailed, NoRoom, PodUnavailable):
                    await self._prefetch(version, evicting=evicting)

    async def _prefetch(self, version: CatalogVersion, *, evicting: bool) -> None:
        await self._engine.wait_ready()
        with self._host.lease(version.digest):
            if evicting or (await self.bring(version)).num_bytes <= self._host.free_bytes:
                await self._load(version)

    async def _load(self, version: CatalogVersion) -> None:
        told = ""
        for _ in range(_MOST_TRIES):
            try:
                return await self._host.load(version.digest, partial(self._bring_own, version))
            except _RefusedVersion as error:
                # Another version of the same bytes was refused for what is its own: ask for this one's.
                if error.version is version:
                    raise AdapterNotReady(f"{version.label} is refused: {error}") from error
                told = "others of the same bytes are refused"
            except AdapterRefusal as error:
                self._on_refused(version, error)
                raise AdapterNotReady(f"{version.label} is refused: {error}") from error
            except FilesGone as error:
                told = str(error)  # Another needed the place before the engine read them: they are brought again.
            except FetchFailed as error:
                raise PodUnavailable(f"{version.label} cannot be had now: {error}") from error
        raise PodUnavailable(f"{version.label} cannot be had now: {told}: try again")

    async def _bring_own(self, version: CatalogVersion) -> AdapterFiles:
        try:
            return await self.bring(version)
        except AdapterRefusal as error:
            self._on_refused(version, error)
            raise _RefusedVersion(str(error), version) from error


class _RefusedVersion(AdapterRefusal):
    """The documents of one version are wrong, whatever others of the same bytes have."""

    def __init__(self, reason: str, version: CatalogVersion) -> None:
        super().__init__(reason)
        self.version = version
