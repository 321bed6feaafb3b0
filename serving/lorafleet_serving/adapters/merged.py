"""Merged adapters in the engine: made when a request asks for one, dropped when they are idle or room is needed.

They live in the host tier beside the registry's adapters, and leave it as those do when others need the room. Nothing
of them outlives the pod but files in the disk tier.
"""

from __future__ import annotations

import asyncio
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
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed, InvalidRequest, NoRoom, PodUnavailable, QueueFull

_MAX_MAKING = 8
"""Merges that may be under way or wait for their turn at a time."""


@dataclass(frozen=True)
class MergedAdapter:
    """What a request that merges adapters asks for."""

    recipe: MergeRecipe
    members: tuple[CatalogVersion, ...]
    label: str
    """The members in answers: `name:version+name:version`."""
    name: str = "_merged"
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
        self, fetcher: FetcherHandle, host: HostTier, residency: Residency, *, max_adapters: int, idle_limit_s: float
    ) -> None:
        self._fetcher = fetcher
        self._host = host
        self._residency = residency
        self._max_adapters = max_adapters
        self._idle_limit_s = idle_limit_s
        self._used_at: OrderedDict[str, float] = OrderedDict()
        """When those that are there, or on their way, were last asked for; the least recent first."""
        self._making: dict[str, asyncio.Task[None]] = {}
        """By digest; each goes on when the one that asked for it has left."""

    @property
    def num_held(self) -> int:
        """Merged adapters in the engine."""
        return sum(map(self._host.holds, self._used_at))

    async def load(self, merged: MergedAdapter) -> None:
        """Have a merged adapter in the engine; the caller has a lease on its digest.

        Raises:
            InvalidRequest: these adapters cannot be merged.
            NoRoom: what is held leaves no room for it in a tier, or too many merged adapters are in use.
            QueueFull: too many merges are under way.
            PodUnavailable: the engine is down, or the fetcher cannot do it now.
        """
        digest = merged.digest
        if digest in self._making or not self._host.holds(digest):
            await self._made(self._making.get(digest) or self._begin(merged))
        else:
            await self._host.load(digest, partial(self._bring, merged))
        self._used_at[digest] = time.monotonic()
        self._used_at.move_to_end(digest)

    def expire(self) -> None:
        """Drop what nobody has asked for within the limit."""
        now = time.monotonic()
        for digest, used_at in list(self._used_at.items()):
            if now - used_at > self._idle_limit_s:
                self._drop(digest)

    def _make_place(self) -> None:
        while len(self._used_at) >= self._max_adapters:
            if not any(self._drop(digest) for digest in list(self._used_at)):
                raise NoRoom(f"{self._max_adapters} merged adapters are in use already: try later")

    def _begin(self, merged: MergedAdapter) -> asyncio.Task[None]:
        if len(self._making) >= _MAX_MAKING:
            raise QueueFull(f"{_MAX_MAKING} merges are under way already: try later")
        self._used_at.pop(merged.digest, None)
        self._make_place()
        task = asyncio.get_running_loop().create_task(self._make(merged), name=f"merge-{merged.digest}")
        task.add_done_callback(_take_notice)
        self._making[merged.digest] = task
        # Counted from here on, so that several made at a time keep the limit.
        self._used_at[merged.digest] = time.monotonic()
        return task

    async def _make(self, merged: MergedAdapter) -> None:
        digest = merged.digest
        try:
            with self._host.lease(digest):
                await self._host.load(digest, partial(self._bring, merged))
        finally:
            del self._making[digest]
            if not self._host.holds(digest):
                self._used_at.pop(digest, None)

    async def _made(self, task: asyncio.Task[None]) -> None:
        try:
            # Others may wait for the same merge: one that leaves does not end it.
            await asyncio.shield(task)
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


def _take_notice(task: asyncio.Task[None]) -> None:
    """See the error of a task for which nobody may wait any more."""
    if not task.cancelled():
        task.exception()
