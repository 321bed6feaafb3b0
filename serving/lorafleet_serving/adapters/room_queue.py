"""The queue of loads that wait for room: in order of arrival, but for some that fit where one before them does not.

Knows nothing of what takes the room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_MOST_PASSED = 16
"""Loads that may find room before one that came earlier and needs more."""


# Two loads may well be alike in all that is known of them, and are two all the same.
@dataclass(eq=False)
class Waiter:
    """A load that has no room yet."""

    digest: str
    num_passed: int = 0
    """Loads that came later and found room before."""
    has_waited: bool = False


class RoomQueue:
    """Who waits for room, and who may take what there is."""

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []
        self._changed = asyncio.Event()

    @contextmanager
    def place(self, digest: str) -> Iterator[Waiter]:
        """Stand in the queue, behind all who do."""
        waiter = Waiter(digest)
        self._waiters.append(waiter)
        try:
            yield waiter
        finally:
            self._waiters.remove(waiter)
            self.tell()

    def may_pass(self, waiter: Waiter) -> bool:
        """Whether one may take room before those that came earlier."""
        return all(other.num_passed < _MOST_PASSED for other in self._before(waiter))

    def passes(self, waiter: Waiter) -> None:
        """One has taken room before those that came earlier."""
        for other in self._before(waiter):
            other.num_passed += 1

    def tell(self) -> None:
        """Have all who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def told(self, limit_s: float) -> None:
        """Wait until there is something to look at, or for so long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), limit_s)

    def check_integrity(self, loading: Collection[str]) -> None:
        """Assert that each who waits is one of the loads that are under way."""
        waiting = [waiter.digest for waiter in self._waiters]
        assert len(waiting) == len(set(waiting)), f"one load waits twice for room: {waiting}"
        assert set(waiting) <= set(loading), f"{waiting} wait for room, of which only {set(loading)} are under way"

    def _before(self, waiter: Waiter) -> list[Waiter]:
        return self._waiters[: self._waiters.index(waiter)]
