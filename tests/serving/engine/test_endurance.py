"""An engine that has answered many requests is as it was before."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams, Tenant
from tests.serving.random_model import VOCAB_SIZE, write_adapter, write_llama

NUM_WARM, NUM_REQUESTS = 2_000, 10_000
MOST_GROWTH = 8 << 20
NUM_ADAPTERS, NUM_ON_HOST, NUM_ON_DEVICE = 8, 3, 2
"""There are always requests for adapters that have to come again, and more for those on the host than fit beside."""
NUM_TOGETHER = 25
"""Requests that are asked at the same time."""


class Shelf:
    """Adapters that come to an engine when they are asked for, and leave when others are."""

    def __init__(self, engine: Engine, folders: list[Path]) -> None:
        self.engine = engine
        self.folders = folders
        self.num_loads = 0

    def bring(self, wanted: set[str]) -> None:
        """Have these on the host, and no others."""
        for digest in self.engine.stats().host_adapters:
            if digest not in wanted:
                assert self.engine.unload_adapter(digest), f"adapter {digest} is held by nobody"
        for digest in sorted(wanted):
            self.num_loads += digest not in self.engine.stats().host_adapters
            self.engine.load_adapter(digest, self.folders[int(digest)])


def ask(shelf: Shelf, first: int, count: int) -> None:
    """Short requests of several tenants, adapters and priorities, some of them given up."""
    engine = shelf.engine
    for start in range(first, first + count, NUM_TOGETHER):
        turn = start // NUM_TOGETHER
        digests = [str((turn * (NUM_ON_HOST - 1) + k) % NUM_ADAPTERS) for k in range(NUM_ON_HOST)]
        shelf.bring(set(digests))
        requests = [make_request(number, digests) for number in range(start, start + NUM_TOGETHER)]
        for request in requests:
            engine.add_request(request)
        engine.step()
        for request in requests[::10]:
            engine.abort(request.request_id)
        # As long as somebody holds it, it is only told to leave.
        assert not engine.unload_adapter(digests[-1])
        while engine.has_unfinished():
            engine.step()
        assert digests[-1] not in engine.stats().host_adapters


def make_request(number: int, digests: list[str]) -> GenerationRequest:
    return GenerationRequest(
        str(number),
        tuple((number * 7 + k) % VOCAB_SIZE for k in range(4 + number % 20)),
        SamplingParams(max_new_tokens=1 + number % 4, ignore_eos=True),
        None if number % 5 == 0 else digests[number % len(digests)],
        tenant=Tenant(f"tenant-{number % 3}"),
        priority=number % 5 - 2,
    )


@pytest.mark.soak
def test_ten_thousand_requests_leave_memory_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    write_llama(base)
    folders = [write_adapter(base, tmp_path / str(number), number, r=2) for number in range(NUM_ADAPTERS)]
    config = EngineConfig(base, dtype=DType.FP32, kv_cache_bytes=1 << 20, num_threads=1)
    num_bytes = Engine(config).load_adapter("0", folders[0])
    host_bytes, device_bytes = NUM_ON_HOST * num_bytes, NUM_ON_DEVICE * num_bytes
    config = replace(config, adapter_host_bytes=host_bytes, adapter_device_bytes=device_bytes, adapter_turn_steps=1)
    shelf = Shelf(Engine(config), folders)
    process = psutil.Process()
    ask(shelf, 0, NUM_WARM)
    gc.collect()
    before = process.memory_info().rss
    ask(shelf, NUM_WARM, NUM_REQUESTS)
    gc.collect()
    after = process.memory_info().rss
    stats = shelf.engine.stats()
    with capsys.disabled():
        print(f"\nRSS {before / 2**20:.1f} MiB before {NUM_REQUESTS} requests, {after / 2**20:.1f} MiB after")
        print(f"{shelf.num_loads} loads of {num_bytes} bytes, {stats.num_adapter_pauses} turns cut short")
    shelf.engine.check_integrity()
    assert stats.num_free_blocks == stats.num_kv_blocks
    assert shelf.num_loads > NUM_REQUESTS // NUM_TOGETHER
    assert stats.num_adapter_pauses > NUM_REQUESTS // NUM_TOGETHER
    assert after - before <= MOST_GROWTH
