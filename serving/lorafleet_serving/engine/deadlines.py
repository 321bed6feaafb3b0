"""The sequences that are given up at some time."""

from __future__ import annotations

import time

from lorafleet_serving.engine.sequence import Sequence


class Deadlines:
    """Only of live sequences, so that it never grows beyond them."""

    def __init__(self) -> None:
        self._due: dict[Sequence, float] = {}

    def add(self, sequence: Sequence) -> None:
        """Watch a sequence, if its request says until when it is wanted."""
        if sequence.request.deadline is not None:
            self._due[sequence] = sequence.request.deadline

    def discard(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        self._due.pop(sequence, None)

    def expired(self) -> list[Sequence]:
        """The sequences whose time is over."""
        if not self._due:
            return []
        now = time.monotonic()
        return [sequence for sequence, due in self._due.items() if due <= now]
