"""Has the versions in the engine that requests ask for, wherever their bytes are when they are asked for.

A request waits for its own adapter alone, counts as waiting while it does, and holds it from then on. What the engine
loses when it dies comes back by itself, the last used first, where nobody asks for it before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from lorafleet_serving.adapters.artifacts import Artifacts
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.adapters.host import AdapterFiles, HostTier
from lorafleet_serving.adapters.messages import Fetched, Merged
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.engine.request import Tenant
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import (
    AdapterNotReady,
    AdapterRefusal,
    FetchFailed,
    NoRoom,
    PodUnavailable,
)


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
    ) -> None:
        self._host = host
        self._engine = engine
        self._artifacts = artifacts
        self._limits = limits
        self._on_refused = on_refused
        self._prefetches: set[asyncio.Task[None]] = set()
        self._restoring: asyncio.Task[None] | None = None

    async def load(self, version: CatalogVersion, tenant: Tenant) -> None:
        """Have a version in the engine for a request that has a lease on its digest.

        Raises:
            AdapterNotReady: it is refused now.
            NoRoom: what is held leaves no room for it in a tier.
            PodUnavailable: the engine is down, or the files cannot be had now.
            QueueFull: too many wait already, of all or of the tenant.
        """
        if self._host.holds(version.digest):
            return await self._host.load(version.digest, partial(self.bring, version))
        self._limits.enter(tenant)
        try:
            await self._load(version)
        finally:
            self._limits.leave(tenant)

    async def bring(self, version: CatalogVersion) -> AdapterFiles:
        """Have a version's files on disk.

        Raises:
            AdapterRefusal, FetchFailed, NoRoom: as `Artifacts.have` does.
        """
        return self.files(await self._artifacts.have(version))

    def files(self, fetched: Fetched | Merged) -> AdapterFiles:
        """Where what was fetched or merged is, and what it will take in the engine."""
        item_bytes = self._engine.facts.item_bytes if self._engine.facts is not None else 1
        return AdapterFiles(fetched.folder, fetched.num_elements * item_bytes)

    def prefetch(self, version: CatalogVersion) -> None:
        """Have a version in the engine before anybody asks."""
        if not self._host.holds(version.digest):
            task = asyncio.get_running_loop().create_task(self._prefetch(version), name=f"prefetch-{version.label}")
            self._prefetches.add(task)
            task.add_done_callback(self._prefetches.discard)

    def pin(self, digests: Iterable[str]) -> None:
        """Set what is to stay in the engine although nobody asks for it, the most important first."""
        self._host.pin(tuple(digests))

    def let_go(self, digest: str) -> None:
        """Let an adapter go that no version is served with."""
        self._host.let_go(digest)

    def restore(self, versions: Sequence[CatalogVersion]) -> None:
        """Bring back what the engine lost when it died, as long as nothing has to leave for it."""
        if self._restoring is not None:
            self._restoring.cancel()
        self._restoring = asyncio.get_running_loop().create_task(self._restore(versions), name="restore")

    def stop(self) -> None:
        """Prefetch no more."""
        for task in (*self._prefetches, *((self._restoring,) if self._restoring is not None else ())):
            task.cancel()

    async def _restore(self, versions: Sequence[CatalogVersion]) -> None:
        for version in versions:
            if version.servable:
                await self._prefetch(version, evicting=False)

    async def _prefetch(self, version: CatalogVersion, *, evicting: bool = True) -> None:
        # Nobody waits for it: whoever asks finds out for himself what is wrong.
        with (
            suppress(AdapterNotReady, AdapterRefusal, FetchFailed, NoRoom, PodUnavailable),
            self._host.lease(version.digest),
        ):
            await self._engine.wait_ready()
            if evicting or (await self.bring(version)).num_bytes <= self._host.free_bytes:
                await self._load(version)

    async def _load(self, version: CatalogVersion) -> None:
        try:
            await self._host.load(version.digest, partial(self.bring, version))
        except AdapterRefusal as error:
            self._on_refused(version, error)
            raise AdapterNotReady(f"{version.label} is refused: {error}") from error
        except FetchFailed as error:
            raise PodUnavailable(f"{version.label} cannot be had now: {error}") from error
