"""The front's side of the fetcher process: orders as futures, repeated by themselves after a crash."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, replace

from lorafleet_contract.states import Tier
from lorafleet_serving.adapters.fetcher_process import fetcher_main
from lorafleet_serving.adapters.merge_recipe import MergeRecipe
from lorafleet_serving.adapters.messages import (
    DiskChanged,
    DiskUsage,
    DistrustAdapter,
    Fetched,
    FetcherEvent,
    FetcherReady,
    FetchOrder,
    FetchUnchanged,
    HandFetched,
    HandOrder,
    KeepAdapters,
    Merged,
    MergeOrder,
    NotFetched,
    Order,
    StopFetcher,
)
from lorafleet_serving.adapters.tier_counts import TierCounts
from lorafleet_serving.child import ChildProcess
from lorafleet_serving.config import FetcherConfig
from lorafleet_serving.exceptions import FetchFailed

_Result = Fetched | HandFetched | Merged | None

_MAX_CRASHES = 3
"""An order that was under way in this many crashes is given back: it may be what crashes the fetcher."""


@dataclass
class _Pending:
    order: Order
    future: asyncio.Future[_Result]
    num_crashes: int = 0


class FetcherHandle:
    """Speaks with the fetcher process and keeps it alive. Runs on the front's event loop."""

    def __init__(self, config: FetcherConfig, *, silence_limit_s: float) -> None:
        self._child = ChildProcess(
            "fetcher",
            fetcher_main,
            config,
            silence_limit_s=silence_limit_s,
            on_event=self._receive,
            on_exit=self._died,
        )
        self._pending: dict[int, _Pending] = {}
        self._order_ids = itertools.count(1)
        self._kept: frozenset[str] = frozenset()
        self.is_ready = False
        self.on_disk: frozenset[str] = frozenset()
        """Digests that the disk tier holds."""
        self.disk_bytes = 0
        """Of the disk tier, those that are taken."""
        self.disk_counts = TierCounts()

    def start(self) -> None:
        """Spawn the process."""
        self._child.start()

    async def stop(self) -> None:
        """End the process."""
        await self._child.stop(StopFetcher())

    async def fetch(self, order: FetchOrder) -> Fetched | None:
        """Have a version brought to disk and verified; None when the refused artifacts are unchanged.

        Raises:
            AdapterRefusal: it must not be served as it is.
            FetchFailed: it could not be fetched now.
            NoRoom: the disk tier has no room for it now.
        """
        found = await self._order(replace(order, order_id=next(self._order_ids)))
        assert found is None or isinstance(found, Fetched), "a fetch was answered with something else"
        return found

    async def fetch_by_hand(self, order: HandOrder) -> HandFetched:
        """Have an adapter that is loaded by hand brought to disk and verified.

        Raises:
            AdapterRefusal: it must not be served as it is.
            FetchFailed: it could not be fetched now.
            NoRoom: the disk tier has no room for it now.
        """
        found = await self._order(replace(order, order_id=next(self._order_ids)))
        assert isinstance(found, HandFetched), "a fetch by hand was answered with something else"
        return found

    async def merge(self, recipe: MergeRecipe) -> Merged:
        """Have adapters of the disk tier merged.

        Raises:
            AdapterRefusal: these adapters cannot be merged.
            FetchFailed: they could not be merged now.
            NoRoom: the disk tier has no room for the result now.
        """
        found = await self._order(MergeOrder(next(self._order_ids), recipe))
        assert isinstance(found, Merged), "a merge was answered with something else"
        return found

    async def _order(self, order: Order) -> _Result:
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._pending[order.order_id] = _Pending(order, future)
        if self.is_ready:
            self._child.send(order)
        try:
            return await future
        finally:
            self._pending.pop(order.order_id, None)

    def keep(self, digests: frozenset[str]) -> None:
        """Set the digests that the disk tier evicts last."""
        if digests != self._kept:
            self._kept = digests
            if self.is_ready:
                self._child.send(KeepAdapters(digests))

    def distrust(self, digest: str) -> None:
        """Have an adapter's files on disk hashed again before they are next used."""
        if self.is_ready:  # One that starts trusts nothing.
            self._child.send(DistrustAdapter(digest))

    def _receive(self, event: FetcherEvent) -> None:
        match event:
            case FetcherReady(digests, usage):
                self.is_ready = True
                self._note_disk(digests, usage)
                self._child.send(KeepAdapters(self._kept))
                for pending in self._pending.values():
                    self._child.send(pending.order)
            case DiskChanged(digests, usage):
                self._note_disk(digests, usage)
            case Fetched(order_id):
                self._count(event)
                self._resolve(order_id, event)
            case HandFetched(order_id) | Merged(order_id):
                self._resolve(order_id, event)
            case FetchUnchanged(order_id):
                self._resolve(order_id, None)
            case NotFetched(order_id, error):
                self._resolve(order_id, error)

    def _note_disk(self, digests: frozenset[str], usage: DiskUsage) -> None:
        self.on_disk = digests
        self.disk_bytes, self.disk_counts.evictions = usage.num_bytes, usage.num_evictions

    def _count(self, fetched: Fetched) -> None:
        if fetched.source == Tier.DISK:
            self.disk_counts.hits += 1
        else:
            self.disk_counts.misses += 1
            self.disk_counts.note_load(fetched.source, fetched.download_s)

    def _resolve(self, order_id: int, result: _Result | Exception) -> None:
        pending = self._pending.pop(order_id, None)
        if pending is None or pending.future.done():
            return  # Nobody waits any more.
        if isinstance(result, Exception):
            pending.future.set_exception(result)
        else:
            pending.future.set_result(result)

    def _died(self) -> None:
        self.is_ready = False
        for order_id, pending in list(self._pending.items()):
            pending.num_crashes += 1
            if pending.num_crashes >= _MAX_CRASHES:
                self._resolve(
                    order_id, FetchFailed(f"the fetcher process ended {_MAX_CRASHES} times while fetching it")
                )
