"""An engine that only holds what it is told to, for tests of the tiers above it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.engine.request import ANONYMOUS
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import AnswerLost, FilesGone, NoRoom


class MemoryEngine(EngineHandle):
    """Holds what it is told to, within the budget, and takes its time when it is told to."""

    def __init__(self, sizes: dict[str, int], budget: int) -> None:
        super().__init__(
            EngineConfig(Path()),
            limits=WaitingLimits(1, [ANONYMOUS]),
            silence_limit_s=10.0,
            on_ready=lambda: None,
            on_down=lambda: None,
            on_failure=lambda reason: None,
        )
        self._sizes = sizes
        self._budget = budget
        self.allowed = asyncio.Event()
        self.allowed.set()
        self.num_loads = 0
        self.num_gone = 0
        """Loads whose files have left the disk."""
        self.generation = 0

    async def load(self, digest: str, folder: str) -> int:
        generation = self.generation
        await self.allowed.wait()
        if generation != self.generation:
            raise AnswerLost("the engine died")
        self.num_loads += 1
        if self.num_gone:
            self.num_gone -= 1
            raise FilesGone("the files have left the disk")
        if sum(self.loaded.values()) + self._sizes[digest] > self._budget:
            raise NoRoom("the engine has no room")
        self.loaded[digest] = self._sizes[digest]
        await asyncio.sleep(0)  # Who waits hears of it a moment later than it is there.
        return self._sizes[digest]

    def unload(self, digest: str) -> None:
        del self.loaded[digest]

    def die(self) -> None:
        self.generation += 1
        self.loaded.clear()
