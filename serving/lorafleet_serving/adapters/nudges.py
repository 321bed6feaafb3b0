"""Names that somebody says have changed, handed out one after the other, and each no oftener than it is worth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

BURST = 8
"""Times that a name is handed out without a pause: a promotion tells a pod of its steps four times or so."""
PAUSE_S = 0.125
"""Time in which a name earns one more: however often it is told, the registry is asked eight times a second for it."""


class Nudge(NamedTuple):
    """A name that has changed."""

    name: str
    received_at: float
    """Unix time at which that was first said, since the name was last handed out."""


class Nudges:
    """A mailbox for names that any thread writes to and one thread reads.

    A name that is told again before its turn is handed out once; one that is told while it is looked at comes again
    after. So what changed before the telling is always seen, by one look more.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told = threading.Condition()
        self._waiting: dict[str, float] = {}
        """Since which unix time, in the order in which they were told."""
        self._spent: dict[str, float] = {}
        """When a name will have its whole burst again; none where it has."""
        self._closed = False

    def put(self, name: str) -> None:
        """A name has changed."""
        with self._told:
            self._waiting.setdefault(name, time.time())
            self._told.notify()

    def take(self, limit_s: float) -> Nudge | None:
        """The first name whose turn it is, waiting for one; None when the time has passed, or there is an end."""
        deadline = self._clock() + limit_s
        with self._told:
            while not self._closed:
                now = self._clock()
                self._spent = {name: whole for name, whole in self._spent.items() if whole > now}
                found = next((name for name in self._waiting if self._turn(name, now) <= now), None)
                if found is not None:
                    self._spent[found] = self._spent.get(found, now) + PAUSE_S
                    return Nudge(found, self._waiting.pop(found))
                if now >= deadline:
                    return None
                self._told.wait(min([deadline, *(self._turn(name, now) for name in self._waiting)]) - now)
            return None

    def close(self) -> None:
        """Hand out nothing any more."""
        with self._told:
            self._closed = True
            self._told.notify()

    def _turn(self, name: str, now: float) -> float:
        return self._spent.get(name, now) - (BURST - 1) * PAUSE_S
