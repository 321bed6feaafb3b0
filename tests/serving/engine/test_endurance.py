"""An engine that has answered many requests is as it was before."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams, Tenant
from tests.serving.random_model import VOCAB_SIZE, write_adapter, write_llama

NUM_WARM, NUM_REQUESTS = 2_000, 10_000
MOST_GROWTH = 8 << 20
NUM_ADAPTERS = 8


def ask(engine: Engine, first: int, count: int) -> None:
    """Short requests of several tenants, adapters and priorities, some of them given up."""
    requests = [
        GenerationRequest(
            str(number),
            tuple((number * 7 + k) % VOCAB_SIZE for k in range(4 + number % 20)),
            SamplingParams(max_new_tokens=1 + number % 4, ignore_eos=True),
            None if number % 5 == 0 else str(number % NUM_ADAPTERS),
            tenant=Tenant(f"tenant-{number % 3}"),
            priority=number % 5 - 2,
        )
        for number in range(first, first + count)
    ]
    for start in range(0, count, 100):
        for request in requests[start : start + 100]:
            engine.add_request(request)
        engine.step()
        for request in requests[start : start + 100 : 10]:
            engine.abort(request.request_id)
        while engine.has_unfinished():
            engine.step()


@pytest.mark.soak
def test_ten_thousand_requests_leave_memory_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llama(tmp_path / "base")
    engine = Engine(EngineConfig(tmp_path / "base", dtype=DType.FP32, kv_cache_bytes=1 << 20, num_threads=1))
    for number in range(NUM_ADAPTERS):
        folder = write_adapter(tmp_path / "base", tmp_path / str(number), number, r=2)
        engine.load_adapter(str(number), folder)
    process = psutil.Process()
    ask(engine, 0, NUM_WARM)
    gc.collect()
    before = process.memory_info().rss
    ask(engine, NUM_WARM, NUM_REQUESTS)
    gc.collect()
    after = process.memory_info().rss
    with capsys.disabled():
        print(f"\nRSS {before / 2**20:.1f} MiB before {NUM_REQUESTS} requests, {after / 2**20:.1f} MiB after")
    engine.check_integrity()
    assert engine.stats().num_free_blocks == engine.stats().num_kv_blocks
    assert after - before <= MOST_GROWTH
