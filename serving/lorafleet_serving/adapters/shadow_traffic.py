"""Asks shadows what their champions were asked, one answer at a time and when nobody waits.

An answer is mirrored once it is over: what it was is known then, and its caller waits for nothing. No adapter leaves
memory for a shadow's, and what is asked in its name is the last in every queue.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass

from lorafleet_serving.adapters.answer_watch import AnswerWatch, WatchedAnswer
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.adapters.host import HostTier
from lorafleet_serving.adapters.residency import Residency
from lorafleet_serving.adapters.shadow import Shadow
from lorafleet_serving.caller import Caller
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.engine.request import PRIORITIES, SHADOW
from lorafleet_serving.exceptions import GenerationFailed, InvalidRequest, NoRoom, ServingError
from lorafleet_serving.generation import Generation

_MOST_KEPT = 32
"""Questions that may wait to be mirrored: the oldest is given up for a newer one."""
_LIMIT_S = 60.0
"""After which an answer that nobody sees is given up."""
_LOOK_S = 0.02

Ask = Callable[[CatalogVersion, Caller], Awaitable[Generation]]
"""Asks a version what another was asked, in a caller's name."""


@dataclass(frozen=True)
class _Mirrored:
    """A question with the champion's answer to it."""

    shadow: Shadow
    version: CatalogVersion
    answer: WatchedAnswer
    ask: Ask


class ShadowTraffic:
    """Mirrors answers. Runs on the front's event loop."""

    def __init__(self, engine: EngineHandle, host: HostTier, residency: Residency) -> None:
        self._engine = engine
        self._host = host
        self._residency = residency
        self._waiting: deque[_Mirrored] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    def watch(self, shadow: Shadow, version: CatalogVersion, ask: Ask) -> AnswerWatch:
        """Follow an answer of a champion, and mirror it to its shadow's version once it is over."""
        return AnswerWatch(lambda answer: self._offer(_Mirrored(shadow, version, answer, ask)))

    def stop(self) -> None:
        """Mirror no more."""
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()

    def _offer(self, mirrored: _Mirrored) -> None:
        if mirrored.answer.seen.failed is not None or self._is_stopped:
            return  # There is nothing to compare with, or nobody to read it.
        if len(self._waiting) == _MOST_KEPT:
            self._waiting.popleft().shadow.num_skipped += 1
        self._waiting.append(mirrored)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._mirror_all(), name="shadow-traffic")

    async def _mirror_all(self) -> None:
        while self._waiting:
            await self._until_quiet()
            mirrored = self._waiting.popleft()
            try:
                own = await self._answer(mirrored)
            except ServingError:
                # No fault of the version's: the engine died, or there was no room or time.
                mirrored.shadow.num_skipped += 1
            else:
                mirrored.shadow.compare(mirrored.answer, own)

    async def _until_quiet(self) -> None:
        """Wait until a sequence more takes nobody's place."""
        while not self._engine.is_ready or self._engine.num_waiting or not self._engine.has_place:
            await asyncio.sleep(_LOOK_S)

    async def _answer(self, mirrored: _Mirrored) -> WatchedAnswer:
        """What the shadow answers.

        Raises:
            ServingError: nothing, for reasons that are not its own.
        """
        version, heard = mirrored.version, list[WatchedAnswer]()
        watch = AnswerWatch(heard.append)
        with self._host.lease(version.digest):
            if not version.servable or not await self._residency.load_where_free(version):
                raise NoRoom(f"{version.label} is not in memory, and nothing leaves it for a shadow")
            try:
                caller = Caller(SHADOW, priority=PRIORITIES[0], deadline=time.monotonic() + _LIMIT_S)
                with closing(await mirrored.ask(version, caller)) as generation:
                    async for piece in generation.pieces():
                        watch.piece(piece, 0.0)
            except (GenerationFailed, InvalidRequest) as error:
                # One whose template does not take what the champion's took fails as well.
                watch.failed(str(error))
        (answer,) = heard
        return answer
