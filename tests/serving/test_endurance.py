"""A pod that has answered many requests is as it was before, in all of its processes."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector

from lorafleet_contract.digest import WEIGHTS_FILE
from lorafleet_serving.adapters.tensor_header import read_header
from lorafleet_serving.kernels.cpu.packed import rows_computed
from tests.serving.conftest import PodFactory
from tests.serving.pod_process import PodProcess
from tests.serving.registered_adapter import AdapterSource, RegistryHand
from tests.serving.tiny_model import make_tiny_adapter

NUM_WARM, NUM_REQUESTS = 2_000, 10_000
NUM_CONNECTIONS = 8
MOST_GROWTH = 8 << 20
"""Of each process. A kilobyte that is kept of each request would be ten megabytes."""
ADAPTERS = tuple(f"enduring-{letter}" for letter in "abcd")
RANK = 32
"""So large that they would be found if they stayed when they leave."""
NUM_ON_HOST, NUM_ON_DEVICE = 2, 1
"""Adapters that fit: there are always requests for others, which come and leave again, and those here take turns."""
COUNTERS = {
    "loads": ("lorafleet_adapter_load_seconds_count", {"tier": "host"}),
    "evictions": ("lorafleet_tier_evictions_total", {"tier": "host"}),
    "turns": ("lorafleet_adapter_pauses_total", {}),
}
_NUM_KINDS = 11
"""Of requests."""
_NUM_SCHEMAS = 48
"""More than compiled ones are kept."""
_MOST_ROWS = 200
"""Of a prompt; more than the connections' requests make a step of."""


class Request(NamedTuple):
    """One request, and what becomes of it."""

    body: dict[str, Any]
    path: str = "/v1/completions"
    status: int = 200
    leaves: bool = False
    """Whether the caller is gone after the first event."""


def make_request(number: int) -> Request:
    """Requests of many kinds, in turns."""
    turn, kind = divmod(number, _NUM_KINDS)
    asked = {"prompt": f"the cat {number}", "max_tokens": 1 + turn % 6}
    adapted = {**asked, "model": ADAPTERS[number % len(ADAPTERS)]}
    chat = {"messages": [{"role": "user", "content": f"the dog {number}"}], "max_tokens": 4}
    kinds = (
        Request(asked),
        Request({**adapted, "temperature": 1.0, "n": 2}),
        Request({**adapted, "stream": True}),
        Request({**adapted, "logprobs": 5}),
        Request({**adapted, "echo": True, "max_tokens": 0, "logprobs": 1}),
        Request({**chat, "stream": True, "logprobs": True, "top_logprobs": 3}, "/v1/chat/completions"),
        Request({**adapted, "max_tokens": 40, "response_format": _schema(turn % _NUM_SCHEMAS)}),
        Request({**adapted, "max_tokens": 200, "ignore_eos": True, "stream": True}, leaves=True),
        Request({**asked, "temperature": -1}, status=422),
        Request({**asked, "model": f"nobody-{number}"}, status=404),
        Request({"inputs": asked["prompt"], "parameters": {"max_new_tokens": 4, "details": True}}, "/generate"),
    )
    assert len(kinds) == _NUM_KINDS, f"there are {len(kinds)} kinds"
    return kinds[kind]


def _schema(number: int) -> dict[str, Any]:
    name = f"animal_{number}"
    schema = {"type": "object", "properties": {name: {"enum": ["cat", "dog"]}}, "required": [name]}
    return {"type": "json_schema", "json_schema": {"name": name, "schema": {**schema, "additionalProperties": False}}}


async def ask(url: str, first: int, count: int) -> None:
    """Requests from several connections, each of which asks again as soon as it is answered."""
    numbers = iter(range(first, first + count))

    async def one_connection() -> None:
        async with ClientSession(url, timeout=ClientTimeout(total=120), connector=TCPConnector(limit=1)) as session:
            for number in numbers:
                request = make_request(number)
                async with session.post(request.path, json=request.body) as response:
                    assert response.status == request.status, (request, await response.text())
                    if request.leaves:
                        assert await response.content.readline()
                        response.close()
                    else:
                        await response.read()

    async with asyncio.TaskGroup() as connections:
        for _ in range(NUM_CONNECTIONS):
            connections.create_task(one_connection())


def ask_for_each_number_of_rows(pod: PodProcess) -> None:
    """Prompts of each number of rows that oneDNN is asked for, and keeps compiled code of: it is met once, no leak."""
    for num_rows in sorted({rows_computed(num_rows) for num_rows in range(1, _MOST_ROWS + 1)}):
        # They begin differently, or all but their ends would be known from those before.
        body = {"prompt": [1 + num_rows % 100] * num_rows, "max_tokens": 1}
        assert pod.http.post("/v1/completions", json=body).status_code == 200


def resident(pod: PodProcess) -> dict[str, int]:
    """Resident memory of each of the pod's processes once nothing is under way."""
    for series in ("lorafleet_requests_in_flight", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
        pod.wait_for(partial(_is_zero, pod, series), f"{series} to be 0")
    pids = {"front": pod.pid, **pod.child_pids()}
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


def counts(pod: PodProcess) -> dict[str, float]:
    """How often adapters came, left, and made way for one another on the device."""
    return {name: pod.metric(series, **labels) for name, (series, labels) in COUNTERS.items()}


def _is_zero(pod: PodProcess, series: str) -> bool | None:
    return pod.metric(series) == 0 or None


@pytest.mark.soak
def test_ten_thousand_requests_over_http_leave_memory_where_it_was(
    pod_factory: PodFactory,
    registry: RegistryHand,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [make_tiny_adapter(tiny_model, tmp_path / name, seed, RANK) for seed, name in enumerate(ADAPTERS, 41)]
    num_bytes = 2 * sum(header.num_elements for header in read_header(folders[0] / WEIGHTS_FILE).values())
    # A cache that the warm-up has written from end to end: memory counts only once it was written to.
    flags = {"--dtype": "bfloat16", "--kv-cache-bytes": str(1 << 20), "--adapter-turn-steps": "1"}
    flags |= {"--adapter-host-bytes": str(NUM_ON_HOST * num_bytes)}
    flags |= {"--adapter-device-bytes": str(NUM_ON_DEVICE * num_bytes)}
    pod = pod_factory(*chain(*flags.items()))
    pod.wait_ready()
    for name, folder in zip(ADAPTERS, folders, strict=True):
        registry.promote(registry.register(name, AdapterSource(tiny_model, folder, rank=RANK)))
    for name in ADAPTERS:
        pod.wait_serving(name, 1)
    ask_for_each_number_of_rows(pod)
    asyncio.run(ask(pod.url, 0, NUM_WARM))
    before, counts_before = resident(pod), counts(pod)
    asyncio.run(ask(pod.url, NUM_WARM, NUM_REQUESTS))
    after, counts_after = resident(pod), counts(pod)
    num_of = {name: int(counts_after[name] - counts_before[name]) for name in COUNTERS}
    with capsys.disabled():
        for name in before:
            told = f"{before[name] / 2**20:.1f} MiB before {NUM_REQUESTS} requests, {after[name] / 2**20:.1f} MiB after"
            print(f"\nRSS of the {name}: {told}")
        print(", ".join(f"{count} {name}" for name, count in num_of.items()), f"of adapters of {num_bytes} bytes")
    assert min(num_of.values()) > NUM_REQUESTS // 20, f"too few adapters left and came back: {num_of}"
    assert {name: after[name] - before[name] for name in before if after[name] - before[name] > MOST_GROWTH} == {}
