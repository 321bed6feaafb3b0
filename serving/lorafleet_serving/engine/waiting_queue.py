"""The sequences that wait, by tenant and adapter: of each the first may be admitted next."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from lorafleet_serving.engine.fair_share import FairShare
from lorafleet_serving.engine.sequence import Sequence

_Key = tuple[str, str | None]


class WaitingQueue:
    """Takes its order from the shares; tells them nothing."""

    def __init__(self, shares: FairShare) -> None:
        self._shares = shares
        self._lines: dict[_Key, list[Sequence]] = {}
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def add(self, sequence: Sequence) -> None:
        """A sequence waits."""
        insort(self._lines.setdefault(_key(sequence), []), sequence, key=self._shares.own_place)
        self._len += 1

    def remove(self, sequence: Sequence) -> None:
        """A sequence waits no longer: it is admitted, or has ended."""
        line = self._lines[_key(sequence)]
        line.remove(sequence)
        self._len -= 1
        if not line:
            del self._lines[_key(sequence)]

    def heads(self) -> list[Sequence]:
        """The first of each line."""
        return [line[0] for line in self._lines.values()]

    def check_integrity(self) -> None:
        """Check order and counts."""
        assert self._len == sum(map(len, self._lines.values())), "the waiting are miscounted"
        for line in self._lines.values():
            assert line, "a line without sequences is kept"
            assert line == sorted(line, key=self._shares.own_place), "a line is out of order"


def _key(sequence: Sequence) -> _Key:
    return sequence.request.tenant.name, sequence.adapter
