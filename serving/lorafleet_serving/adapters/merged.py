"""Merged adapters in the engine: made when a request asks for one, dropped when they are idle or room is needed.

They live under the budget of the engine's host tier beside the registry's adapters, which come first. Nothing of
them outlives the pod but files in the disk tier, which go when others need the room.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from lorafleet_contract.manifest import AdapterManifest
from lorafleet_serving.adapters.catalog import Catalog
from lorafleet_serving.adapters.handle import FetcherHandle
from lorafleet_serving.adapters.merge_recipe import MergeRecipe
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed, InvalidRequest, NoRoom, PodUnavailable, QueueFull

_MAX_MAKING = 8
"""Merges that may be under way or wait for their turn at a time."""


@dataclass(frozen=True)
class MergedAdapter:
    """What a request that merges adapters asks for."""

    recipe: MergeRecipe
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
        self, fetcher: FetcherHandle, engine: EngineHandle, catalog: Catalog, *, max_adapters: int, idle_limit_s: float
    ) -> None:
        self._fetcher = fetcher
        self._engine = engine
        self._catalog = catalog
        self._max_adapters = max_adapters
        self._idle_limit_s = idle_limit_s
        self._used_at: OrderedDict[str, float] = OrderedDict()
        """Digests in the engine, least recently asked for first."""
        self._making: dict[str, asyncio.Task[None]] = {}

    @property
    def digests(self) -> frozenset[str]:
        """Digests that belong to merged adapters."""
        return frozenset((*self._used_at, *self._making))

    async def load(self, recipe: MergeRecipe) -> None:
        """Have a merged adapter in the engine; the caller holds a lease on its digest.

        Raises:
            InvalidRequest: these adapters cannot be merged.
            NoRoom: other adapters fill a tier.
            QueueFull: too many merges are under way.
            PodUnavailable: the engine is down, or the fetcher cannot do it now.
        """
        digest = recipe.digest
        if digest not in self._engine.loaded:
            if digest not in self._making:
                if len(self._making) >= _MAX_MAKING:
                    raise QueueFull(f"{_MAX_MAKING} merges are under way already: try later")
                task = asyncio.get_running_loop().create_task(self._make(recipe))
                task.add_done_callback(_take_notice)
                self._making[digest] = task
            await self._made(self._making[digest])
        self._used_at[digest] = time.monotonic()
        self._used_at.move_to_end(digest)

    def expire(self) -> None:
        """Drop what nobody has asked for within the limit."""
        now = time.monotonic()
        for digest, used_at in list(self._used_at.items()):
            if now - used_at > self._idle_limit_s:
                self._drop(digest)

    def make_room(self) -> bool:
        """Drop the one that was not used for longest; False if all are in use."""
        return any(self._drop(digest) for digest in list(self._used_at))

    async def _made(self, task: asyncio.Task[None]) -> None:
        try:
            # Others may wait for the same merge: one that leaves does not end it.
            await asyncio.shield(task)
        except AdapterRefusal as error:
            raise InvalidRequest(f"merged_adapters: {error}", field="merged_adapters") from error
        except FetchFailed as error:
            raise PodUnavailable(f"the adapters could not be merged now: {error}") from error

    async def _make(self, recipe: MergeRecipe) -> None:
        try:
            folder = await self._fetcher.merge(recipe)
            while len(self._used_at) >= self._max_adapters:
                if not self.make_room():
                    raise NoRoom(f"{self._max_adapters} merged adapters are in use already: try later")
            # Counted from here on, so that several made at a time keep the limit, and found by `expire` in any case.
            self._used_at[recipe.digest] = time.monotonic()
            await self._load(recipe.digest, folder)
        finally:
            del self._making[recipe.digest]

    async def _load(self, digest: str, folder: str) -> None:
        try:
            while True:
                try:
                    return await self._engine.load(digest, folder)
                except NoRoom:
                    if not self.make_room():
                        raise
        finally:
            if digest not in self._engine.loaded:
                self._used_at.pop(digest, None)

    def _drop(self, digest: str) -> bool:
        if self._catalog.in_flight(digest):
            return False
        del self._used_at[digest]
        if digest in self._engine.loaded:
            self._engine.unload(digest)
        return True


def _take_notice(task: asyncio.Task[None]) -> None:
    """See the error of a task for which nobody may wait any more."""
    if not task.cancelled():
        task.exception()
