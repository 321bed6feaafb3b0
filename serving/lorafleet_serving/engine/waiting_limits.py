"""How many requests may wait, of all tenants and of each, and when one that is turned away should come back."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from lorafleet_serving.engine.request import Tenant
from lorafleet_serving.exceptions import QueueFull

_WINDOW_S = 10.0
_LONGEST_S = 30
"""What is told where nobody left the queue of late."""


class WaitingLimits:
    """Counts those that wait.

    Each tenant always finds places for its share of `max_waiting` by weight, and more while fewer than `max_waiting`
    wait in all: one that fills the queue turns away itself, not others. At worst about twice `max_waiting` wait.
    """

    def __init__(
        self, max_waiting: int, tenants: Collection[Tenant], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_waiting = max_waiting
        self._weights = 0.0
        self.share_among(tenants)
        self._num_waiting: Counter[str] = Counter()
        self._all_left = DrainRate(clock)
        self._left: defaultdict[str, DrainRate] = defaultdict(lambda: DrainRate(clock))

    def share_among(self, tenants: Collection[Tenant]) -> None:
        """These are the tenants from now on."""
        self._weights = sum(tenant.weight for tenant in tenants)

    def most(self, tenant: Tenant) -> int:
        """How many requests of a tenant may wait where nobody else does."""
        return self._max_waiting if tenant.max_waiting is None else min(tenant.max_waiting, self._max_waiting)

    def enter(self, tenant: Tenant) -> None:
        """One more request of a tenant waits.

        Raises:
            QueueFull: too many wait; says when to come back.
        """
        own, total = self._num_waiting[tenant.name], self._num_waiting.total()
        if tenant.max_waiting is not None and own >= tenant.max_waiting:
            rate, limit = self._left[tenant.name], tenant.max_waiting
            told = f"{own} requests of {tenant.name!r} wait already, its limit is {limit}"
            raise QueueFull(f"{told}: try later", retry_after_s=rate.seconds_for(own))
        if total >= self._max_waiting and own >= self._share(tenant):
            told = f"{total} requests wait already, the limit is {self._max_waiting}"
            raise QueueFull(f"{told}: try later", retry_after_s=self._all_left.seconds_for(total))
        self._num_waiting[tenant.name] += 1

    def leave(self, tenant: Tenant) -> None:
        """A request waits no longer: it has a token, or has ended."""
        self._num_waiting[tenant.name] -= 1
        self._all_left.count()
        self._left[tenant.name].count()

    @contextmanager
    def waiting(self, tenant: Tenant) -> Iterator[None]:
        """A request of a tenant waits meanwhile.

        Raises:
            QueueFull: as `enter` does.
        """
        self.enter(tenant)
        try:
            yield
        finally:
            self.leave(tenant)

    def _share(self, tenant: Tenant) -> int:
        return max(1, int(self._max_waiting * tenant.weight / max(self._weights, tenant.weight)))


class DrainRate:
    """How fast requests left the queue in the last seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: deque[float] = deque()

    def count(self) -> None:
        """One has left."""
        self._times.append(self._clock())
        self._forget()

    def seconds_for(self, num_waiting: int) -> int:
        """Seconds until those who wait now will have left at the rate of the last ten: from 1 to 30."""
        self._forget()
        if not self._times:
            return _LONGEST_S
        return min(_LONGEST_S, max(1, math.ceil(num_waiting * _WINDOW_S / len(self._times))))

    def _forget(self) -> None:
        while self._times and self._times[0] < self._clock() - _WINDOW_S:
            self._times.popleft()
