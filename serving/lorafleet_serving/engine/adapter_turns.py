"""Whose adapters are on the device in the next step, where those of the batch do not all fit.

An adapter is held for sequences while it computes for them, and not for as long as they live: to bring it back takes
about a step, to wait for somebody's answer to end takes thousands. A sequence whose adapter is not there pauses: it
keeps its place in the batch and its blocks.

First come, first served: the adapter that waits longest is next, and one on the device stays for `turn_steps` steps
before another may have its place. So of n adapters of a batch, where at least k fit at a time, none pauses for more
than ceil(n / k) * turn_steps steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol


class Residency(Protocol):
    """The device's tier of adapters."""

    def acquire(self, digest: str) -> bool:
        """Make an adapter resident and hold it; False while there is no room."""
        ...

    def release(self, digest: str) -> None:
        """Give back one hold."""
        ...


class AdapterTurns:
    """The adapters of the batch: those that are held on the device, and those that wait to be."""

    def __init__(self, residency: Residency, turn_steps: int) -> None:
        self._residency = residency
        self._turn_steps = turn_steps
        self._num_sequences: Counter[str] = Counter()
        """Of the batch, by adapter."""
        self._began: dict[str, int] = {}
        """Held adapters and the step in which their turn began, the earliest first."""
        self._queue: dict[str, None] = {}
        """Adapters that wait for their turn, in order."""
        self._step = 0
        self.num_pauses = 0
        """Times that an adapter gave up its place while sequences of the batch had more to compute with it."""

    def has(self, adapter: str | None) -> bool:
        """Whether sequences with the adapter may compute in this step."""
        return adapter is None or adapter in self._began

    def begin_step(self) -> None:
        """Let those whose turn is over make way for those that wait."""
        self._step += 1
        for adapter in list(self._queue):
            # None is let past one that needs more room than is free yet: it would wait for ever.
            if not self._bring(adapter):
                return
            del self._queue[adapter]

    def enter(self, adapter: str | None) -> None:
        """A sequence joins the batch."""
        if adapter is None:
            return
        self._num_sequences[adapter] += 1
        if adapter in self._began or adapter in self._queue:
            return
        if self._queue or not self._bring(adapter):
            self._queue[adapter] = None

    def leave(self, adapter: str | None) -> None:
        """A sequence has left the batch."""
        if adapter is None:
            return
        self._num_sequences[adapter] -= 1
        if self._num_sequences[adapter]:
            return
        del self._num_sequences[adapter]
        self._queue.pop(adapter, None)
        if adapter in self._began:
            self._end(adapter)

    def check_integrity(self, batch: Iterable[str | None]) -> None:
        """Check that each adapter of the batch, and no other, is either held or waits."""
        count = Counter(adapter for adapter in batch if adapter is not None)
        assert count == self._num_sequences, f"adapters of the batch are miscounted: {self._num_sequences}, not {count}"
        assert not self._began.keys() & self._queue.keys(), "an adapter waits for its turn while it has it"
        assert count.keys() == self._began.keys() | self._queue.keys(), "an adapter neither computes nor waits"

    def _bring(self, adapter: str) -> bool:
        while not self._residency.acquire(adapter):
            over = [held for held, began in self._began.items() if self._step - began >= self._turn_steps]
            if not over:
                return False
            self._end(over[0])
            self._queue[over[0]] = None
            self.num_pauses += 1
        self._began[adapter] = self._step
        return True

    def _end(self, adapter: str) -> None:
        del self._began[adapter]
        self._residency.release(adapter)
