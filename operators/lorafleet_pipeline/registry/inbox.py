"""What reaches the controller from other threads: changes that were just made, and adapters to look at."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from dataclasses import dataclass

from lorafleet_pipeline.registry.change import Change


@dataclass(frozen=True)
class Post:
    """What was found in the inbox. `names` None means every adapter."""

    names: frozenset[str] | None
    changes: tuple[tuple[str, Change], ...]


class Inbox:
    """A mailbox that any thread may write to and one thread empties."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[tuple[frozenset[str] | None, Change | None]] = queue.SimpleQueue()

    def announce(self, name: str, change: Change | None) -> None:
        """A change of an adapter was made."""
        self._items.put((frozenset({name}), change))

    def look(self, names: Iterable[str] | None) -> None:
        """Some adapters, or all, should be looked at."""
        self._items.put((None if names is None else frozenset(names), None))

    def take(self, limit_s: float) -> Post:
        """Everything that is there, waiting for the first item if there is none."""
        names: set[str] | None = set()
        changes: list[tuple[str, Change]] = []
        try:
            item = self._items.get(timeout=limit_s) if limit_s > 0 else self._items.get_nowait()
            while True:
                found, change = item
                names = None if names is None or found is None else names | found
                if change is not None and found is not None:
                    changes.extend((name, change) for name in found)
                item = self._items.get_nowait()
        except queue.Empty:
            return Post(None if names is None else frozenset(names), tuple(changes))
