"""More adapters than the host tier holds: all are served, each from its own bytes, and none that is in use leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import httpx
import pytest

from lorafleet_contract.states import ServeState, Tier
from tests.conftest import MLflowFactory
from tests.services import RunningMLflow
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.pod_process import PodProcess
from tests.serving.registered_adapter import Registered, RegistryHand

NUM_ADAPTERS = 4
NUM_HELD = 2
PROMPT = "the cat sat on"
MISSES = "lorafleet_tier_misses_total"
TTFT, TTFT_BY = "vllm:time_to_first_token", "lorafleet_adapter_time_to_first_token"
_AT_ONCE_S = 5.0
"""What a busy machine needs; a load that stands still takes for ever."""


@pytest.fixture(scope="module")
def own_mlflow(mlflow_factory: MLflowFactory) -> RunningMLflow:
    return mlflow_factory()


@pytest.fixture(scope="module")
def adapters(own_mlflow: RunningMLflow, tiny_adapter: SourceFactory) -> list[Registered]:
    registry = RegistryHand(own_mlflow)
    found = [registry.register(f"tenant-{seed}", tiny_adapter(seed)) for seed in range(NUM_ADAPTERS)]
    for adapter in found:
        registry.promote(adapter)
    return found


@pytest.fixture(scope="module")
def narrow_pod(
    pod_factory: PodFactory, own_mlflow: RunningMLflow, adapters: list[Registered], tiny_adapter: SourceFactory
) -> PodProcess:
    size = (tiny_adapter(0).folder / "adapter_model.safetensors").stat().st_size
    settings = ("--dtype", "float32", "--adapter-host-bytes", str(size * NUM_HELD), "--room-limit", "1")
    pod = pod_factory(*settings, on=own_mlflow)
    pod.wait_ready()
    for adapter in adapters:
        pod.wait_serving(adapter.name, 1)
    return pod


@pytest.fixture(scope="module")
def strict_pod(
    pod_factory: PodFactory, own_mlflow: RunningMLflow, adapters: list[Registered], tiny_adapter: SourceFactory
) -> Iterator[PodProcess]:
    """A pod in which one request may wait; it holds one adapter, and its fetcher stands still."""
    size = (tiny_adapter(0).folder / "adapter_model.safetensors").stat().st_size
    # Nothing but a client's leaving ends its wait.
    limits = ("--max-waiting", "1", "--room-limit", "600", "--silence-limit", "600")
    pod = pod_factory("--dtype", "float32", "--adapter-host-bytes", str(size), *limits, on=own_mlflow)
    pod.wait_ready()
    for adapter in adapters:
        pod.wait_serving(adapter.name, 1)
    assert _ask(pod, adapters[0]).status_code == 200
    fetcher = pod.child_pids()["fetcher"]
    os.kill(fetcher, signal.SIGSTOP)
    yield pod
    os.kill(fetcher, signal.SIGCONT)


def _ask(pod: PodProcess, adapter: Registered) -> httpx.Response:
    body = {"model": adapter.name, "prompt": PROMPT, "max_tokens": 12, "ignore_eos": True}
    return pod.http.post("/v1/completions", json=body)


def _in_memory(pod: PodProcess) -> set[str]:
    report = pod.client.report()
    return {item.name for item in report.adapters if any(Tier.HOST in version.tiers for version in item.versions)}


def test_all_are_ready_and_answer_although_only_some_are_in_memory(
    narrow_pod: PodProcess, adapters: list[Registered]
) -> None:
    states = {version.state for item in narrow_pod.client.report().adapters for version in item.versions}
    assert states == {ServeState.READY}
    answers = [_ask(narrow_pod, adapter) for adapter in (*adapters, *adapters)]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert [answer.headers["x-lorafleet-digest"] for answer in answers[:NUM_ADAPTERS]] == [a.digest for a in adapters]
    texts = [answer.json()["choices"][0]["text"] for answer in answers]
    assert texts[:NUM_ADAPTERS] == texts[NUM_ADAPTERS:], "an answer changed when its adapter came back"
    assert len(set(texts[:NUM_ADAPTERS])) == NUM_ADAPTERS, "the adapters change too little to tell them apart"
    assert len(_in_memory(narrow_pod)) == NUM_HELD


def test_metrics_tell_what_each_tier_did(
    narrow_pod: PodProcess, adapters: list[Registered], tiny_adapter: SourceFactory
) -> None:
    def counted(name: str) -> dict[Tier, float]:
        return {tier: narrow_pod.metric(f"lorafleet_tier_{name}", tier=tier) for tier in Tier}

    def loaded(source: str, tier: Tier) -> float:
        return narrow_pod.metric("lorafleet_adapter_load_seconds_count", source=source, tier=tier)

    names = ("hits_total", "misses_total", "evictions_total")
    before = {name: counted(name) for name in names}
    loads, stalls = loaded("disk", Tier.HOST), narrow_pod.metric("lorafleet_adapter_stall_seconds_count")
    first = narrow_pod.metric("lorafleet_adapter_requests_total", adapter=adapters[0].name)
    waited = [narrow_pod.metric(f"{series}_seconds_sum") for series in ("lorafleet_adapter_stall", TTFT, TTFT_BY)]
    # Each but the last has left when it is asked again, and so has to be brought.
    for adapter in (*adapters, *adapters, adapters[-1]):
        assert _ask(narrow_pod, adapter).status_code == 200
    hits, misses, evictions = ({tier: counted(name)[tier] - before[name][tier] for tier in Tier} for name in names)
    assert misses[Tier.HOST] + hits[Tier.HOST] == 2 * NUM_ADAPTERS + 1
    assert hits[Tier.HOST] >= 1
    assert misses[Tier.HOST] == evictions[Tier.HOST] == hits[Tier.DISK] >= NUM_ADAPTERS
    assert misses[Tier.DISK] == evictions[Tier.DISK] == 0
    assert loaded("disk", Tier.HOST) - loads == misses[Tier.HOST]
    assert narrow_pod.metric("lorafleet_adapter_stall_seconds_count") - stalls == misses[Tier.HOST]
    stalled_s, *to_first_s = (
        narrow_pod.metric(f"{series}_seconds_sum") - before_s
        for series, before_s in zip(("lorafleet_adapter_stall", TTFT, TTFT_BY), waited, strict=True)
    )
    assert 0 < stalled_s < min(to_first_s), "what a request waits for its adapter is no part of its time"
    assert loaded("s3", Tier.DISK) == NUM_ADAPTERS
    assert narrow_pod.metric("lorafleet_adapter_requests_total", adapter=adapters[0].name) == first + 2
    # The engine tells of the device when it is idle.
    narrow_pod.wait_for(lambda: loaded("host", Tier.DEVICE) >= misses[Tier.HOST] or None, "the engine's word")
    size = (tiny_adapter(0).folder / "adapter_model.safetensors").stat().st_size
    held, taken, most = counted("adapters"), counted("bytes"), counted("budget_bytes")
    assert (held[Tier.DISK], held[Tier.HOST]) == (NUM_ADAPTERS, NUM_HELD)
    assert most[Tier.HOST] == NUM_HELD * size
    assert taken[Tier.DISK] > NUM_ADAPTERS * size
    assert all(0 < taken[tier] <= most[tier] for tier in Tier)
    assert narrow_pod.metric("lorafleet_versions", state="ready") == narrow_pod.metric("lorafleet_versions")
    assert narrow_pod.metric("lorafleet_registry_lag_seconds") < 30


def test_requests_that_are_turned_away_are_counted_by_reason(narrow_pod: PodProcess) -> None:
    def refused(reason: str) -> float:
        return narrow_pod.metric("lorafleet_refused_requests_total", reason=reason)

    before = refused("not_found"), refused("validation")
    for body in ({"model": "nobody", "prompt": PROMPT}, {"prompt": PROMPT, "max_tokens": -1}, {"nothing": 1}):
        assert narrow_pod.http.post("/v1/completions", json=body).status_code in (404, 422)
    assert (refused("not_found"), refused("validation")) == (before[0] + 1, before[1] + 2)


def test_many_who_ask_at_once_all_get_their_own(narrow_pod: PodProcess, adapters: list[Registered]) -> None:
    alone = {adapter.name: _ask(narrow_pod, adapter).json()["choices"][0]["text"] for adapter in adapters}
    asked = adapters * 10
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda adapter: _ask(narrow_pod, adapter), asked))
    assert [answer.status_code for answer in answers] == [200] * len(asked)
    texts = [answer.json()["choices"][0]["text"] for answer in answers]
    assert texts == [alone[adapter.name] for adapter in asked]
    assert len(_in_memory(narrow_pod)) <= NUM_HELD


def test_what_is_in_use_is_not_evicted_and_the_one_without_room_is_told_so(
    narrow_pod: PodProcess, adapters: list[Registered]
) -> None:
    using, other = adapters[:NUM_HELD], adapters[NUM_HELD]
    engine = narrow_pod.child_pids()["engine"]
    with ThreadPoolExecutor(NUM_HELD) as pool:
        for adapter in using:
            assert _ask(narrow_pod, adapter).status_code == 200
        os.kill(engine, signal.SIGSTOP)
        try:
            answers = [pool.submit(_ask, narrow_pod, adapter) for adapter in using]
            narrow_pod.wait_for(lambda: narrow_pod.metric("lorafleet_requests_in_flight") == NUM_HELD or None, "them")
            failures = narrow_pod.metric("lorafleet_adapter_failures_total", adapter=other.name)
            refused = _ask(narrow_pod, other)
            assert narrow_pod.metric("lorafleet_adapter_failures_total", adapter=other.name) == failures + 1
            assert _in_memory(narrow_pod) == {adapter.name for adapter in using}
        finally:
            os.kill(engine, signal.SIGCONT)
        assert refused.status_code == 507
        assert refused.headers["Retry-After"]
        assert "--adapter-host-bytes" in refused.json()["error"]["message"]
        assert [answer.result().status_code for answer in answers] == [200] * NUM_HELD
    assert _ask(narrow_pod, other).status_code == 200


def test_one_that_is_withdrawn_while_it_is_brought_answers_nobody(
    narrow_pod: PodProcess, own_mlflow: RunningMLflow, tiny_adapter: SourceFactory, adapters: list[Registered]
) -> None:
    registry = RegistryHand(own_mlflow)
    doomed = registry.register("doomed", tiny_adapter(9))
    registry.promote(doomed)
    narrow_pod.wait_serving(doomed.name, 1)
    for adapter in adapters[:NUM_HELD]:
        assert _ask(narrow_pod, adapter).status_code == 200
    assert doomed.name not in _in_memory(narrow_pod)
    engine = narrow_pod.child_pids()["engine"]
    with ThreadPoolExecutor(1) as pool:
        os.kill(engine, signal.SIGSTOP)
        try:
            misses = narrow_pod.metric(MISSES, tier="host")
            asked = pool.submit(_ask, narrow_pod, doomed)
            narrow_pod.wait_for(lambda: narrow_pod.metric(MISSES, tier="host") > misses or None, "the load")
            registry.withdraw(doomed)
            narrow_pod.wait_for(lambda: narrow_pod.version(doomed.name, 1) is None or None, "it to be let go")
        finally:
            os.kill(engine, signal.SIGCONT)
        assert asked.result().status_code == 410


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "tenant-1", "prompt": PROMPT}),
        ("/v1/completions", {"model": "tenant-1", "prompt": PROMPT, "stream": True}),
        ("/v1/chat/completions", {"model": "tenant-1", "messages": [{"role": "user", "content": PROMPT}]}),
        ("/v1/embeddings", {"model": "tenant-1", "input": PROMPT}),
        ("/generate", {"inputs": PROMPT, "parameters": {"adapter_id": "tenant-1"}}),
        ("/generate_stream", {"inputs": PROMPT, "parameters": {"adapter_id": "tenant-1"}}),
        ("/embed", {"inputs": PROMPT, "parameters": {"adapter_id": "tenant-1"}}),
        (
            "/generate",
            {
                "inputs": PROMPT,
                "parameters": {"merged_adapters": {"ids": ["tenant-1", "tenant-2"], "weights": [0.5, 0.5]}},
            },
        ),
    ],
)
def test_a_client_that_leaves_while_its_adapter_is_brought_waits_no_longer(
    strict_pod: PodProcess, path: str, body: Mapping[str, object]
) -> None:
    def status() -> int:
        return strict_pod.http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 1}).status_code

    misses = strict_pod.metric(MISSES, tier="host")
    with contextlib.closing(HTTPConnection(httpx.URL(strict_pod.url).netloc.decode())) as client:
        client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        strict_pod.wait_for(lambda: strict_pod.metric(MISSES, tier="host") > misses or None, "the load")
        assert status() == 429
    strict_pod.wait_for(lambda: status() == 200 or None, "the place to be free", _AT_ONCE_S)
    assert not any(version.in_flight for item in strict_pod.client.report().adapters for version in item.versions)
