"""Merged adapters in the engine: made when a request asks for one, dropped when they are idle or room is needed.

They live in the host tier beside the registry's adapters, and leave it as those do when others need the room. Nothing
of them outlives the pod but files in the disk tier.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from lorafleet_contract.manifest import AdapterManifest
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.adapters.handle import FetcherHandle
from lorafleet_serving.adapters.host import AdapterFiles, HostTier
from lorafleet_serving.adapters.merge_recipe import MergeRecipe
from lorafleet_serving.adapters.residency import Residency
from lorafleet_serving.engine.request import Tenant
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed, InvalidRequest, NoRoom, PodUnavailable, QueueFull

MERGED_NAME = "_merged"
"""Under which all merged adapters are counted."""
_MAX_MAKING = 8
"""Merges that may be under way or wait for their turn at a time."""


@dataclass(frozen=True)
class MergedAdapter:
    """What a request that merges adapters asks for."""

    recipe: MergeRecipe
    members: tuple[CatalogVersion, ...]
    label: str
    """The members in answers: `name:version+name:version`."""
    name: str = MERGED_NAME
    """All share one, so that metrics do not grow with what callers think of."""
    manifest: AdapterManifest | None = None
    """A merged adapter has no template of its own."""

    @property
    def digest(self) -> str:
        """Identity in the engine."""
        return self.recipe.digest


class MergedAdapters:
    """Makes and keeps merged adapters. Runs on the front's event loop."""

    def __init__(
        self,
        fetcher: FetcherHandle,
        host: HostTier,
        residency: Residency,
        limits: WaitingLimits,
        *,
        max_adapters: int,
        idle_limit_s: float,
    ) -> None:
        self._fetcher = fetcher
        self._host = host
        self._residency = residency
        self._limits = limits
        self._max_adapters = max_adapters
        self._idle_limit_s = idle_limit_s
        self._used_at: OrderedDict[str, float] = OrderedDict()
        """When those that are there, or on their way, were last asked for; the least recent first."""

    @property
    def num_held(self) -> int:
        """Merged adapters in the engine."""
        return sum(map(self._host.holds, self._used_at))

    async def load(self, merged: MergedAdapter, tenant: Tenant) -> None:
        """Have a merged adapter in the engine for a request that has a lease on its digest.

        Raises:
            InvalidRequest: these adapters cannot be merged.
            NoRoom: what is held leaves no room for it in a tier, or too many merged adapters are in use.
            QueueFull: too many merges are under way, or too many wait already, of all or of the tenant.
            PodUnavailable: the engine is down, or the fetcher cannot do it now.
        """
        digest = merged.digest
        if self._host.holds(digest):
            await self._load(merged)
        else:
            with self._limits.waiting(tenant):
                if not self._host.is_loading(digest):
                    self._take_place(digest)
                await self._load(merged)
        self._used_at[digest] = time.monotonic()
        self._used_at.move_to_end(digest)

    def expire(self) -> None:
        """Drop what nobody has asked for within the limit."""
        now = time.monotonic()
        for digest, used_at in list(self._used_at.items()):
            if now - used_at > self._idle_limit_s:
                self._drop(digest)

    def _take_place(self, digest: str) -> None:
        """Count one more, from here on, so that several made at a time keep the limit."""
        if sum(map(self._host.is_loading, self._used_at)) >= _MAX_MAKING:
            raise QueueFull(f"{_MAX_MAKING} merges are under way already: try later")
        for known in list(self._used_at):
            if not self._host.holds(known) and not self._host.is_loading(known):
                del self._used_at[known]  # It failed, or the engine lost it.
        while len(self._used_at) >= self._max_adapters:
            if not any(self._drop(known) for known in list(self._used_at)):
                raise NoRoom(f"{self._max_adapters} merged adapters are in use already: try later")
        self._used_at[digest] = time.monotonic()

    async def _load(self, merged: MergedAdapter) -> None:
        try:
            await self._host.load(merged.digest, partial(self._bring, merged))
        except AdapterRefusal as error:
            raise InvalidRequest(f"merged_adapters: {error}", field="merged_adapters") from error
        except FetchFailed as error:
            raise PodUnavailable(f"the adapters could not be merged now: {error}") from error

    async def _bring(self, merged: MergedAdapter) -> AdapterFiles:
        for member in merged.members:
            await self._residency.bring(member)
        return self._residency.files(await self._fetcher.merge(merged.recipe))

    def _drop(self, digest: str) -> bool:
        gone = self._host.evict(digest)
        if gone:
            del self._used_at[digest]
        return gone
