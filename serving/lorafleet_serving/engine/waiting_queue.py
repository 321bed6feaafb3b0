"""The sequences that wait, by tenant and adapter: of each the first may be admitted next."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator

from lorafleet_serving.engine.fair_share import FairShare
from lorafleet_serving.engine.sequence import Sequence

_Key = tuple[str, str | None]


class _Line:
    """The waiting sequences of one tenant on one adapter, in order."""

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.num_overtaken = 0
        """Sequences admitted since the first of these was found to have no room for its adapter."""


class WaitingQueue:
    """Takes its order from the shares; tells them nothing."""

    def __init__(self, shares: FairShare) -> None:
        self._shares = shares
        self._lines: dict[_Key, _Line] = {}
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line.sequences

    def add(self, sequence: Sequence) -> None:
        """A sequence waits."""
        line = self._lines.setdefault(_key(sequence), _Line())
        insort(line.sequences, sequence, key=self._shares.own_place)
        self._len += 1

    def remove(self, sequence: Sequence) -> None:
        """A sequence waits no longer: it is admitted, or has ended."""
        line = self._lines[_key(sequence)]
        line.sequences.remove(sequence)
        self._len -= 1
        if not line.sequences:
            del self._lines[_key(sequence)]

    def heads(self) -> list[Sequence]:
        """The first of each line."""
        return [line.sequences[0] for line in self._lines.values()]

    def overtake(self, blocked: Iterable[Sequence], admitted: Sequence) -> None:
        """Count that a sequence was admitted before those whose adapters found no room."""
        for sequence in blocked:
            self._lines[_key(sequence)].num_overtaken += 1
        if line := self._lines.get(_key(admitted)):
            line.num_overtaken = 0

    def num_overtaken(self, sequence: Sequence) -> int:
        """How many were admitted since its line found no room."""
        return self._lines[_key(sequence)].num_overtaken

    def check_integrity(self, max_overtakes: int) -> None:
        """Check order and counts."""
        assert self._len == sum(len(line.sequences) for line in self._lines.values()), "the waiting are miscounted"
        for line in self._lines.values():
            assert line.sequences, "a line without sequences is kept"
            assert line.sequences == sorted(line.sequences, key=self._shares.own_place), "a line is out of order"
            assert line.num_overtaken <= max_overtakes, "a sequence starves"


def _key(sequence: Sequence) -> _Key:
    return sequence.request.tenant.name, sequence.adapter
