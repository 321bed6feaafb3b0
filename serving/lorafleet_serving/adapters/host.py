"""The host tier: adapters in the engine's memory, within its byte budget.

An adapter comes when somebody asks for it, and leaves when another needs the room: which one, a policy says. What a
request holds, or what is pinned, never leaves. Runs on the front's event loop, and knows nothing of names and versions.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lorafleet_contract.states import Tier
from lorafleet_serving.adapters.eviction import EvictionOrder
from lorafleet_serving.adapters.room_queue import RoomQueue, Waiter
from lorafleet_serving.adapters.tier_counts import TierCounts
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.exceptions import NoRoom

_LOOK_S = 1.0
"""How often a load that waits for room looks for itself, should nobody tell it."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on disk."""

    folder: str
    num_bytes: int
    """About what it will take in memory."""


Bring = Callable[[], Awaitable[AdapterFiles]]
"""Has an adapter's files brought to disk."""


class HostTier:
    """Which adapters are in the engine's memory, and who holds them there."""

    def __init__(self, engine: EngineHandle, budget_bytes: int, order: EvictionOrder, *, room_limit_s: float) -> None:
        self._engine = engine
        self._budget_bytes = budget_bytes
        self._order = order
        self._room_limit_s = room_limit_s
        self._leases: Counter[str] = Counter()
        self._pins: tuple[str, ...] = ()
        self._kept: dict[str, None] = {}
        """Pinned by hand, in that order."""
        self._leaving: set[str] = set()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._reserved: dict[str, int] = {}
        """Bytes of adapters that the engine was told to load."""
        self._queue = RoomQueue()
        self.counts = TierCounts()

    @property
    def used_bytes(self) -> int:
        """Memory of the adapters that are there, or for which room is set aside."""
        coming = (size for digest, size in self._reserved.items() if digest not in self._engine.loaded)
        return sum(self._engine.loaded.values()) + sum(coming)

    @property
    def free_bytes(self) -> int:
        """What is left of the budget without evicting anything."""
        return self._budget_bytes - self.used_bytes

    def holds(self, digest: str) -> bool:
        """Whether an adapter is there."""
        return digest in self._engine.loaded

    def is_loading(self, digest: str) -> bool:
        """Whether an adapter is on its way."""
        return digest in self._loading

    def num_leases(self, digest: str) -> int:
        """Requests, and whatever else holds an adapter."""
        return self._leases[digest]

    @contextmanager
    def lease(self, digest: str) -> Iterator[None]:
        """Hold an adapter where it is; one that is not there yet, from its coming on."""
        self._leases[digest] += 1
        try:
            yield
        finally:
            self._leases[digest] -= 1
            if not self._leases[digest]:
                del self._leases[digest]
                self._queue.tell()
                if digest in self._leaving:
                    self.evict(digest)

    @property
    def pinned(self) -> frozenset[str]:
        """Adapters that stay although nobody holds them."""
        left = self._budget_bytes // 2
        found = set()
        for digest in (*self._kept, *self._pins):
            num_bytes = self._engine.loaded.get(digest, 0)
            if num_bytes <= left:
                left -= num_bytes
                found.add(digest)
        return frozenset(found)

    def pin(self, digests: Sequence[str]) -> None:
        """Set the adapters that are to stay although nobody holds them: the first that fit into half of the tier."""
        self._pins = tuple(digests)
        self._queue.tell()

    def keep(self, digest: str) -> None:
        """Pin an adapter that is there, by hand: before all that is pinned otherwise, until it is unwanted or released.

        Raises:
            NoRoom: with it more than half of the tier would be pinned by hand.
        """
        kept = self._kept.keys() | {digest}
        num_bytes, most = sum(self._engine.loaded.get(other, 0) for other in kept), self._budget_bytes // 2
        if num_bytes > most:
            raise NoRoom(
                f"{num_bytes} bytes would be pinned by hand, at most half of the tier, {most}, may be: "
                "unpin another, or raise --adapter-host-bytes"
            )
        self._kept[digest] = None

    def release(self, digest: str) -> None:
        """Pin an adapter by hand no longer."""
        self._kept.pop(digest, None)
        self._queue.tell()

    async def load(self, digest: str, bring: Bring) -> None:
        """Have an adapter in the engine; the caller has a lease on it. All who ask meanwhile wait for one load.

        Raises:
            AdapterRefusal: it must not be served.
            FetchFailed: its files could not be had now.
            NoRoom: what is held leaves no room for it, and did not within the limit.
            PodUnavailable: the engine is down, or died meanwhile.
        """
        assert self._leases[digest], f"adapter {digest} is loaded for nobody"
        self._leaving.discard(digest)
        task = self._loading.get(digest)
        if task is not None and task.done() and not self.holds(digest):
            task = None  # It failed a moment ago, for those who asked before.
        # One that has only just come is counted by its load first.
        if task is None and self.holds(digest):
            self.counts.hits += 1
            self._order.use(digest)
            return
        self.counts.misses += 1
        if task is None:
            task = asyncio.get_running_loop().create_task(self._bring_in(digest, bring), name=f"load-{digest}")
            task.add_done_callback(lambda ended: self._ended(digest, ended))
            self._loading[digest] = task
        # One that asks and leaves does not end the load of the others.
        await asyncio.shield(task)

    def evict(self, digest: str) -> bool:
        """Let an adapter go; False if somebody holds it."""
        if self._leases[digest] or digest in self._loading:
            return False
        self._leaving.discard(digest)
        self._order.remove(digest)
        if self.holds(digest):
            self._engine.unload(digest)
        return True

    def let_go(self, digest: str) -> None:
        """Let an adapter go as soon as nobody holds it, unless somebody asks for it before."""
        self._kept.pop(digest, None)
        if self._leases[digest] or self.holds(digest) or digest in self._loading:
            self._leaving.add(digest)
            self.evict(digest)

    def engine_down(self) -> list[str]:
        """The engine lost everything; returns what that was, the most valuable first."""
        return self._order.lose_all()

    def check_integrity(self) -> None:
        """Assert what holds between any two steps of the event loop."""
        assert self.used_bytes <= self._budget_bytes, f"{self.used_bytes} bytes of {self._budget_bytes} are taken"
        assert self._reserved.keys() <= self._loading.keys(), "room is set aside for a load that has ended"
        self._queue.check_integrity(self._loading)

    def _ended(self, digest: str, task: asyncio.Task[None]) -> None:
        if self._loading[digest] is task:
            del self._loading[digest]
        if not task.cancelled():
            task.exception()  # Nobody may wait any more.
        if digest in self._leaving:
            self.evict(digest)

    async def _bring_in(self, digest: str, bring: Bring) -> None:
        began = time.monotonic()
        files = await bring()
        brought_s = time.monotonic() - began
        num_bytes, loaded_s = await self._load(digest, files)
        self._order.add(digest, num_bytes, brought_s + loaded_s)
        self.counts.note_load(Tier.DISK, loaded_s)

    async def _load(self, digest: str, files: AdapterFiles) -> tuple[int, float]:
        """Make room and load; returns the size, which is known for sure only now, and the seconds without waiting."""
        deadline = time.monotonic() + self._room_limit_s
        # One that seems larger than the tier may have it whole: the engine tells whether that is enough.
        num_bytes = min(files.num_bytes, self._budget_bytes)
        while True:
            await self._take_room(digest, num_bytes, deadline)
            began = time.monotonic()
            try:
                return await self._engine.load(digest, files.folder), time.monotonic() - began
            except NoRoom:
                if time.monotonic() >= deadline:
                    raise
                # It is larger than its files told, and the engine has the last word: one more must leave.
                num_bytes = min(self.free_bytes + num_bytes + 1, self._budget_bytes)
            finally:
                del self._reserved[digest]
                self._queue.tell()
            if num_bytes == self._budget_bytes:
                await asyncio.sleep(_LOOK_S)  # Nothing is left to leave but what the engine still drops.

    async def _take_room(self, digest: str, num_bytes: int, deadline: float) -> None:
        """Set room aside as soon as it is this one's turn and there is some."""
        with self._queue.place(digest) as waiter:
            while not self._queue.may_pass(waiter) or not self._evict_for(digest, num_bytes):
                await self._await_room(waiter, num_bytes, deadline)
            self._reserved[digest] = num_bytes
            self._queue.passes(waiter)

    async def _await_room(self, waiter: Waiter, num_bytes: int, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not self._leases[waiter.digest]:
            raise NoRoom(
                f"adapters in use or pinned leave less than {num_bytes} of {self._budget_bytes} bytes, and did "
                f"for {self._room_limit_s:.0f} s: try later, or raise --adapter-host-bytes"
            )
        self.counts.waits_for_room += not waiter.has_waited
        waiter.has_waited = True
        await self._queue.told(min(left_s, _LOOK_S))

    def _evict_for(self, digest: str, num_bytes: int) -> bool:
        """Evict what must leave; nothing where that would not do, or where nobody wants the one that comes any more."""
        missing = num_bytes - self.free_bytes
        if missing > 0 and not self._leases[digest]:
            return False
        kept = self.pinned | self._loading.keys()
        free = [other for other in self._engine.loaded if not self._leases[other] and other not in kept]
        victims: list[str] = []
        for victim in self._order.by_value(free):
            if missing <= 0:
                break
            victims.append(victim)
            missing -= self._engine.loaded[victim]
        if missing > 0:
            return False
        for victim in victims:
            self._order.evict(victim)
            self._engine.unload(victim)
            self.counts.evictions += 1
        return True
