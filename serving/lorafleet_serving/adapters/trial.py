"""The trial of a version in the engine: loaded, and asked its own first example, before any caller reaches it."""

from __future__ import annotations

import asyncio

from lorafleet_contract.manifest import AdapterManifest
from lorafleet_serving.adapters.smoke import SmokeTest
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.exceptions import AdapterRefusal, GenerationFailed, PodUnavailable

_MAX_ENGINE_DEATHS = 3
"""A digest under which the engine died so often while it was loaded and tested is refused."""


class Trial:
    """Loads adapters and generates with them. Runs on the front's event loop."""

    def __init__(self, engine: EngineHandle, smoke: SmokeTest) -> None:
        self._engine = engine
        self._smoke = smoke
        self._engine_deaths: dict[str, int] = {}
        self._passed: set[str] = set()
        """Digests that generated in this process: an engine restart need not repeat it."""
        # One at a time, so that a crash of the engine is put down to the right adapter.
        self._turn = asyncio.Lock()
        self.digest: str | None = None
        """What is tried now: it must stay loaded, refused before or not."""

    async def run(self, digest: str, folder: str, manifest: AdapterManifest) -> None:
        """Load an adapter and generate with it, again after each death of the engine that it survives.

        Raises:
            AdapterRefusal: it cannot be loaded, does not generate, or kills the engine.
            NoRoom: other adapters fill the host tier.
        """
        async with self._turn:
            self.digest = digest
            try:
                await self._try(digest, folder, manifest)
            finally:
                self.digest = None
        self._engine_deaths.pop(digest, None)

    async def _try(self, digest: str, folder: str, manifest: AdapterManifest) -> None:
        while True:
            await self._engine.wait_ready()
            try:
                await self._engine.load(digest, folder)
                return await self._generate(digest, manifest)
            except PodUnavailable:
                self._count_engine_death(digest)

    async def _generate(self, digest: str, manifest: AdapterManifest) -> None:
        token_ids = self._smoke.encode(manifest.prompt)
        if digest in self._passed:
            return
        try:
            await self._smoke.run(digest, token_ids)
        except GenerationFailed as error:
            raise AdapterRefusal(f"the smoke generation failed: {error}") from error
        self._passed.add(digest)

    def _count_engine_death(self, digest: str) -> None:
        deaths = self._engine_deaths.get(digest, 0) + 1
        self._engine_deaths[digest] = deaths
        if deaths >= _MAX_ENGINE_DEATHS:
            del self._engine_deaths[digest]
            raise AdapterRefusal(f"the engine died {deaths} times while this adapter was loaded and tested")
