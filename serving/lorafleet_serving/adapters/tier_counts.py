"""What a tier has done since its process began: in a form that processes tell each other."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace

LOAD_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Longest times that are counted together; one more place takes what is longer."""


@dataclass(frozen=True)
class LoadTimes:
    """How long loads took."""

    counts: tuple[int, ...] = (0,) * (len(LOAD_BUCKETS_S) + 1)
    """Loads of each bucket and of no shorter one."""
    total_s: float = 0.0

    @property
    def num_loads(self) -> int:
        """All of them."""
        return sum(self.counts)

    def plus(self, seconds: float) -> LoadTimes:
        """The same with one more."""
        place = bisect_left(LOAD_BUCKETS_S, seconds)
        counts = (*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :])
        return LoadTimes(counts, self.total_s + seconds)


@dataclass
class TierCounts:
    """What one tier has done."""

    hits: int = 0
    """Times that what was asked for was there."""
    misses: int = 0
    evictions: int = 0
    """Adapters that left because another needed the room."""
    waits_for_room: int = 0
    """Loads that waited because all that was there was in use."""
    loads: dict[str, LoadTimes] = field(default_factory=dict)
    """Loads into the tier, by where they came from."""

    @property
    def num_loads(self) -> int:
        """Loads from anywhere."""
        return sum(times.num_loads for times in self.loads.values())

    def note_load(self, source: str, seconds: float) -> None:
        """An adapter came."""
        self.loads[source] = self.loads.get(source, LoadTimes()).plus(seconds)

    def copy(self) -> TierCounts:
        """As it is now, whatever comes."""
        return replace(self, loads=dict(self.loads))
