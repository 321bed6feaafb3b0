"""What the front tells its engine process of callers over HTTP. The front runs in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from lorafleet_serving.api.app import create_app
from lorafleet_serving.api.server import listen
from lorafleet_serving.config import FetcherConfig, PodConfig
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.messages import EngineStats
from lorafleet_serving.pod import Pod

LONGEST = 16_000
"""Tokens of an answer, one for each step: many more than there is time for before the caller leaves."""
_LIMIT_S = 240.0


@asynccontextmanager
async def running_pod(model: Path, folder: Path) -> AsyncIterator[tuple[Pod, str]]:
    """A pod whose front runs in this process, and its address."""
    engine = EngineConfig(model, kv_cache_bytes=16 << 20, num_threads=1)
    pod = Pod(PodConfig(engine, FetcherConfig(folder)), on_failure=pytest.fail)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(pod), log_level="warning", lifespan="off", ws="none"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await pod.start()
            await pod.engine.wait_ready()
            yield pod, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
            await pod.stop()


async def stats_when(pod: Pod, holds: Callable[[EngineStats], bool]) -> EngineStats:
    """What the engine says of itself, once a condition holds."""
    async with asyncio.timeout(_LIMIT_S):
        while pod.engine.stats is None or not holds(pod.engine.stats):
            await asyncio.sleep(0.01)
        return pod.engine.stats


async def test_the_engine_stops_computing_for_callers_that_left(long_model: Path, tmp_path: Path) -> None:
    async with running_pod(long_model, tmp_path) as (pod, url):
        for stream in (False, True):
            before = await stats_when(pod, lambda stats: stats.num_running == 0)
            body = {"prompt": "the", "max_tokens": LONGEST, "ignore_eos": True, "stream": stream}
            async with httpx.AsyncClient(base_url=url, timeout=_LIMIT_S, trust_env=False) as http:
                asking = asyncio.create_task(http.post("/v1/completions", json=body))
                await stats_when(pod, lambda stats: stats.num_running == 1)
                asking.cancel()
                await asyncio.wait([asking])
            after = await stats_when(pod, lambda stats: stats.num_running == 0)
            # By its own count: nothing but being told ends the sequence before its last token.
            assert 0 < after.num_steps - before.num_steps < LONGEST
            assert after.num_free_blocks == after.num_kv_blocks
