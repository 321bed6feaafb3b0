"""Which adapters have series of their own: the busiest, and never more than so many.

A label means one adapter for ever. Who has none is counted under `_other`. While labels are free, the first to be asked
take them. From then on they change hands at scrapes alone: an adapter that is asked more than twice as often as the
quietest of those with a label takes its place. The scrape shows the one's last value and the other at 0, from where it
counts; so every series begins at 0 and only grows until it ends, and nothing that was counted goes unseen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from lorafleet_serving.adapters.merged import MERGED_NAME

OTHER = "_other"
"""All who have no label of their own. No adapter's name begins like that."""
BASE = "_base"
FIXED = (BASE, MERGED_NAME, OTHER)
"""Labels beside those of adapters."""

_HALF_LIFE_S = 600.0
"""After which a request counts half as much."""
_PAUSE_S = 30.0
"""Least time between two exchanges, however many monitors scrape."""
_RATIO = 2.0
_FEWEST = 3.0
"""Requests of late that an adapter must have had to take another's place."""
_MOST_AT_ONCE = 10
_FORGOTTEN = 0.01


class Exchange(NamedTuple):
    """Labels that begin with a scrape, and those that end with it."""

    gained: list[str]
    lost: list[str]


class AdapterLabels:
    """Labels of adapters' series, `most` of them beside the fixed ones."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._own: set[str] = set()
        self._asked: dict[str, float] = {}
        """Requests of late, by adapter."""
        self._exchanged_at = clock()

    def of(self, adapter: str) -> str:
        """Label of an adapter now; `adapter` may be one of the fixed labels."""
        if adapter in FIXED or adapter in self._own:
            return adapter
        if len(self._own) < self._most:
            self._own.add(adapter)
            return adapter
        return OTHER

    def note_request(self, adapter: str) -> None:
        """An adapter was asked once more."""
        if adapter not in FIXED:
            self._asked[adapter] = self._asked.get(adapter, 0.0) + 1.0

    def exchange(self) -> Exchange:
        """Give labels of the quietest to those who are busier; to be called when all is about to be shown."""
        now = self._clock()
        passed_s = now - self._exchanged_at
        if passed_s < _PAUSE_S:
            return Exchange([], [])
        self._exchanged_at = now
        self._age(0.5 ** (passed_s / _HALF_LIFE_S))
        found = Exchange([], [])
        for busy, quiet in list(zip(self._busiest(), self._quietest(), strict=False))[:_MOST_AT_ONCE]:
            if self._asked[busy] < max(_FEWEST, _RATIO * self._asked.get(quiet, 0.0)):
                break
            found.gained.append(busy)
            found.lost.append(quiet)
        self._own = self._own.difference(found.lost).union(found.gained)
        return found

    def _age(self, factor: float) -> None:
        aged = {adapter: asked * factor for adapter, asked in self._asked.items()}
        self._asked = {adapter: asked for adapter, asked in aged.items() if asked > _FORGOTTEN}

    def _busiest(self) -> list[str]:
        """Adapters without a label, the busiest first."""
        return sorted(self._asked.keys() - self._own, key=self._asked.__getitem__, reverse=True)

    def _quietest(self) -> list[str]:
        return sorted(self._own, key=lambda adapter: self._asked.get(adapter, 0.0))
