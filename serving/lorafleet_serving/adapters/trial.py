"""The trial of a version in the engine: loaded, and asked its own first example, before any caller reaches it."""

from __future__ import annotations

import asyncio

from lorafleet_contract.prompt import PromptBlock
from lorafleet_serving.adapters.host import AdapterFiles, HostTier
from lorafleet_serving.adapters.smoke import SmokeTest
from lorafleet_serving.adapters.trial_memory import TrialMemory
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.exceptions import AdapterRefusal, GenerationFailed, PodUnavailable

_MAX_ENGINE_DEATHS = 3
"""A digest under which the engine died so often while it was loaded and tested is refused."""


class Trial:
    """Loads adapters and generates with them. Runs on the front's event loop."""

    def __init__(self, engine: EngineHandle, host: HostTier, smoke: SmokeTest, memory: TrialMemory) -> None:
        self._engine = engine
        self._host = host
        self._smoke = smoke
        self._engine_deaths: dict[str, int] = {}
        self._passed = memory
        """What has left the engine since it generated need not repeat it."""
        # One at a time, so that a crash of the engine is seldom put down to the wrong adapter.
        self._turn = asyncio.Lock()

    async def run(self, digest: str, files: AdapterFiles, prompt: PromptBlock | None) -> None:
        """Load an adapter and generate with it, again after each death of the engine that it survives.

        Asks the first example of its `prompt` block; one without gets a plain word.

        Raises:
            AdapterRefusal: it cannot be loaded, does not generate, or kills the engine.
            NoRoom: what is held leaves no room for it in the host tier.
        """
        async with self._turn:
            token_ids = self._smoke.encode(prompt)
            if digest not in self._passed:
                await self._try(digest, files, token_ids)
                self._passed.add(digest)

    def forget(self, digest: str) -> None:
        """Try a digest anew the next time, although it passed before."""
        self._passed.discard(digest)

    async def _try(self, digest: str, files: AdapterFiles, token_ids: tuple[int, ...]) -> None:
        while True:
            await self._engine.wait_ready()
            try:
                with self._host.lease(digest):
                    await self._host.load(digest, lambda: _at_hand(files))
                    await self._smoke.run(digest, token_ids)
            except PodUnavailable:
                self._count_engine_death(digest)
            except GenerationFailed as error:
                raise AdapterRefusal(f"the smoke generation failed: {error}") from error
            else:
                self._engine_deaths.pop(digest, None)
                return

    def _count_engine_death(self, digest: str) -> None:
        deaths = self._engine_deaths.get(digest, 0) + 1
        self._engine_deaths[digest] = deaths
        if deaths >= _MAX_ENGINE_DEATHS:
            del self._engine_deaths[digest]
            raise AdapterRefusal(f"the engine died {deaths} times while this adapter was loaded and tested")


async def _at_hand(files: AdapterFiles) -> AdapterFiles:
    return files
