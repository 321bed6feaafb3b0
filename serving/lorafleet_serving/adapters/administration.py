"""What an administrator may do with the adapters in memory; which versions serve is the registry's to say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum

from lorafleet_serving.adapters.artifacts import Artifacts
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.adapters.host import HostTier
from lorafleet_serving.adapters.residency import Residency
from lorafleet_serving.api_keys import ADMIN
from lorafleet_serving.exceptions import AdapterInUse


class AdminAction(StrEnum):
    """What is done to a version that is ready."""

    PIN = "pin"
    """It is brought into memory, and stays there."""
    UNPIN = "unpin"
    """It may leave again."""
    EVICT = "evict"
    """It leaves memory now; who asks for it next brings it back."""
    RELOAD = "reload"
    """Its files are hashed again, and read into memory anew."""


class Administration:
    """Does what an administrator asks. Runs on the front's event loop."""

    def __init__(self, host: HostTier, residency: Residency, artifacts: Artifacts) -> None:
        self._host = host
        self._residency = residency
        self._artifacts = artifacts
        self._actions: dict[AdminAction, Callable[[CatalogVersion], Awaitable[None]]] = {
            AdminAction.PIN: self._pin,
            AdminAction.UNPIN: self._unpin,
            AdminAction.EVICT: self._evict,
            AdminAction.RELOAD: self._reload,
        }

    async def act(self, action: AdminAction, version: CatalogVersion) -> None:
        """Do one thing to a version.

        Raises:
            AdapterInUse: it cannot leave, since requests use it or it is pinned.
            NoRoom: no tier has room for it, or too much would be pinned.
            AdapterNotReady, PodUnavailable: it cannot be brought now.
        """
        self._residency.retry(version)
        await self._actions[action](version)

    async def _pin(self, version: CatalogVersion) -> None:
        with self._host.lease(version.digest):
            await self._residency.load(version, ADMIN)
            self._host.keep(version.digest)

    async def _unpin(self, version: CatalogVersion) -> None:
        self._host.release(version.digest)

    async def _evict(self, version: CatalogVersion) -> None:
        if version.digest in self._host.pinned:
            raise AdapterInUse(f"{version.label} is pinned, by hand or as the way back of a promotion: unpin it first")
        self._take_out(version)

    async def _reload(self, version: CatalogVersion) -> None:
        self._take_out(version)
        self._artifacts.distrust(version.digest)
        with self._host.lease(version.digest):
            await self._residency.load(version, ADMIN)

    def _take_out(self, version: CatalogVersion) -> None:
        if not self._host.evict(version.digest):
            raise AdapterInUse(f"{version.label} is in use by {self._host.num_leases(version.digest)}: try later")
