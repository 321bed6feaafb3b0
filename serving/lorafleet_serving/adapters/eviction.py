"""Which adapter leaves a tier first.

All three policies are one formula, the value of an adapter being what its past is worth for the future:

- LRU: the time of its last use.
- LFU with ageing, LFU-DA: L + uses. M. Arlitt et al., "Evaluating content management techniques for Web proxy caches"
  (2000): L is the value of the last that left, so that what was much used once does not stay for ever.
- GDSF: L + uses * cost / size. L. Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency
  caching policy" (1998): what is small, and takes long to bring back, stays longer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class EvictionPolicy(StrEnum):
    """By what the value of an adapter is told."""

    LRU = "lru"
    LFU = "lfu"
    GDSF = "gdsf"


@dataclass
class _Entry:
    num_bytes: int
    cost_s: float
    num_uses: int
    value: float
    used_at: int


class EvictionOrder:
    """The adapters of a tier by value. Knows nothing of what may leave and what may not."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy
        self._entries: dict[str, _Entry] = {}
        self._lost: dict[str, _Entry] = {}
        self._clock = itertools.count(1)
        self._age = 0.0
        """L: the highest value of one that left for want of room."""

    def add(self, digest: str, num_bytes: int, cost_s: float) -> None:
        """An adapter has come; that counts as a use, unless it comes back after all were lost.

        Args:
            digest: the adapter.
            num_bytes: its size in the tier.
            cost_s: seconds that it took to be brought.
        """
        lost = self._lost.pop(digest, None)
        if lost is not None:
            self._entries[digest] = lost
        else:
            self._entries[digest] = _Entry(num_bytes, cost_s, 0, 0.0, 0)
            self.use(digest)

    def use(self, digest: str) -> None:
        """Somebody asks for an adapter of the tier."""
        entry = self._entries[digest]
        entry.num_uses += 1
        entry.used_at = next(self._clock)
        entry.value = self._value(entry)

    def remove(self, digest: str) -> None:
        """An adapter has left, for whatever reason; it need not be known."""
        self._entries.pop(digest, None)
        self._lost.pop(digest, None)

    def evict(self, digest: str) -> None:
        """An adapter leaves for want of room: what stays has to be worth more from now on."""
        self._age = max(self._age, self._entries.pop(digest).value)

    def lose_all(self) -> list[str]:
        """All are lost at once; returns them, the most valuable first. Those that come back have the value they had."""
        # Beside what was lost before and has not come back: a second loss may come in the middle of a return.
        self._lost, self._entries = {**self._lost, **self._entries}, {}
        return sorted(self._lost, key=lambda digest: _rank(self._lost[digest]), reverse=True)

    def by_value(self, candidates: Iterable[str]) -> list[str]:
        """Candidates, the one to leave first at the front; equal ones by their last use."""
        return sorted(candidates, key=lambda digest: _rank(self._entries[digest]))

    def _value(self, entry: _Entry) -> float:
        match self._policy:
            case EvictionPolicy.LRU:
                return float(entry.used_at)
            case EvictionPolicy.LFU:
                return self._age + entry.num_uses
            case EvictionPolicy.GDSF:
                return self._age + entry.num_uses * entry.cost_s / entry.num_bytes


def _rank(entry: _Entry) -> tuple[float, int]:
    return entry.value, entry.used_at
