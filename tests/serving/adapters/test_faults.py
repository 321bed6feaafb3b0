"""Processes of the pod killed for real, services taken away, and the pod started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest

from lorafleet_contract.states import ServeState
from tests.conftest import MLflowFactory, S3Factory
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.pod_process import PodProcess
from tests.serving.registered_adapter import Registered, RegistryHand, with_report

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def victim(pod_factory: PodFactory, long_model: Path) -> PodProcess:
    """A pod whose processes are killed; it must be whole again after each test."""
    started = pod_factory("--silence-limit", "5", model=long_model)
    started.wait_ready()
    return started


@pytest.fixture(scope="module")
def served(victim: PodProcess, registry: RegistryHand, long_adapter: SourceFactory) -> Registered:
    """A version that the victim serves."""
    registered = registry.register("survivor", long_adapter(1))
    registry.promote(registered)
    registry.promote(registered, "live")
    victim.wait_serving("survivor", 1)
    return registered


def test_a_killed_engine_fails_its_requests_and_comes_back(victim: PodProcess, served: Registered) -> None:
    before = victim.client.complete("survivor", "the cat", max_tokens=8)
    # Far more than there is time for before the engine is killed.
    body = {"model": "survivor", "prompt": "the", "max_tokens": 16_000, "ignore_eos": True, "stream": True}
    parts = victim.http.stream("POST", "/v1/completions", json=body)
    engine = victim.child_pids()["engine"]
    with parts as response:
        lines = response.iter_lines()
        first = next(lines)
        os.kill(engine, signal.SIGKILL)
        rest = [line for line in lines if line]
    assert first.startswith("data: ")
    assert '"code":503' in rest[-1]
    victim.wait_for(lambda: True if victim.child_pids()["engine"] != engine else None, "another engine process")
    victim.wait_ready()
    after = victim.client.complete("survivor", "the cat", max_tokens=8)
    assert (after.text, after.digest) == (before.text, served.digest)


def test_a_waiting_request_hears_503_when_the_engine_dies(victim: PodProcess, served: Registered) -> None:
    statuses: list[int] = []

    def ask() -> None:
        body = {"model": "survivor", "prompt": "the", "max_tokens": 240, "temperature": 1.0}
        with httpx.Client(base_url=victim.url, timeout=60, trust_env=False) as http:
            statuses.extend(http.post("/v1/completions", json=body).status_code for _ in range(20))

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    victim.wait_for(lambda: _running(victim) or None, "requests to run")
    os.kill(victim.child_pids()["engine"], signal.SIGKILL)
    for caller in callers:
        caller.join()
    assert 503 in statuses
    assert set(statuses) <= {200, 503}
    victim.wait_ready()


def test_a_killed_fetcher_is_replaced_and_fetches_on(
    victim: PodProcess, registry: RegistryHand, long_adapter: SourceFactory, served: Registered
) -> None:
    os.kill(victim.child_pids()["fetcher"], signal.SIGKILL)
    assert victim.client.complete("survivor", "the cat", max_tokens=4).digest == served.digest
    later = registry.register("after-fetcher", long_adapter(20))
    registry.promote(later)
    victim.wait_serving("after-fetcher", 1)


def test_a_frozen_engine_is_replaced_and_its_requests_hear_503(victim: PodProcess, served: Registered) -> None:
    engine = victim.child_pids()["engine"]
    os.kill(engine, signal.SIGSTOP)
    body = {"model": "survivor", "prompt": "the", "max_tokens": 4}
    assert victim.http.post("/v1/completions", json=body).status_code == 503
    victim.wait_for(lambda: True if victim.child_pids()["engine"] != engine else None, "another engine process")
    victim.wait_ready()
    assert not _is_running(engine)
    assert victim.client.complete("survivor", "the cat", max_tokens=4).digest == served.digest


def test_a_frozen_fetcher_is_replaced_and_fetches_on(
    victim: PodProcess, registry: RegistryHand, long_adapter: SourceFactory
) -> None:
    fetcher = victim.child_pids()["fetcher"]
    os.kill(fetcher, signal.SIGSTOP)
    later = registry.register("after-freeze", long_adapter(21))
    registry.promote(later)
    victim.wait_serving("after-freeze", 1)
    assert not _is_running(fetcher)


def test_a_killed_front_leaves_no_orphan_and_a_restart_serves_live_while_the_champion_is_refused(
    victim: PodProcess, registry: RegistryHand, long_adapter: SourceFactory
) -> None:
    good = registry.register("restarted", long_adapter(1))
    bad = registry.register("restarted", with_report(long_adapter(2), status="failed", reason="no lift"))
    registry.promote(good, "live")
    registry.promote(bad)
    victim.wait_state("restarted", 2, ServeState.REFUSED)
    victim.wait_serving("restarted", 1)
    children = victim.child_pids()
    victim.signal(signal.SIGKILL)
    victim.wait_exit()
    victim.start()
    victim.wait_ready()
    assert not [name for name, pid in children.items() if _is_running(pid)]
    assert victim.client.complete("restarted", "the cat", max_tokens=4).digest == good.digest
    refused = victim.version("restarted", 2)
    assert refused is not None
    assert (refused.state, refused.error) == (ServeState.REFUSED, "the evaluation gate failed: no lift")


def test_a_caller_that_reads_nothing_holds_no_adapter(victim: PodProcess, served: Registered) -> None:
    asked = {"model": "survivor", "prompt": "the cat", "max_tokens": 6000, "ignore_eos": True, "logprobs": 20}
    body = json.dumps({**asked, "stream": True}).encode()
    fields = f"Host: pod\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"

    def num_leases() -> int:
        version = victim.version("survivor", 1)
        return 0 if version is None else version.in_flight

    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.connect((str(victim.http.base_url.host), victim.http.base_url.port or 80))
        caller.sendall(f"POST /v1/completions HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        victim.wait_for(lambda: num_leases() == 1 or None, "the request to be computed")
        victim.wait_for(lambda: num_leases() == 0 or None, "its last token")
        assert victim.metric("lorafleet_requests_in_flight") == 1


def test_a_drained_pod_finishes_what_runs_and_takes_no_more(victim: PodProcess, served: Registered) -> None:
    # So long that the pod is still there when a new request comes, and within its drain limit on a slow machine.
    body = {"model": "survivor", "prompt": "the cat", "max_tokens": 1500, "ignore_eos": True}
    whole = victim.http.post("/v1/completions", json=body).json()["choices"][0]
    with victim.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {"))
        parts = (json.loads(event)["choices"][0] for event in events)
        received = [next(parts)]
        victim.signal(signal.SIGTERM)
        refused = victim.wait_for(lambda: _refusal(victim), "new requests to be refused")
        received += parts
    assert refused == 503
    assert "".join(part["text"] for part in received) == whole["text"]
    assert received[-1]["finish_reason"] == whole["finish_reason"] == "length"
    assert victim.wait_exit() == 0
    victim.start()
    victim.wait_ready()


def test_without_s3_and_registry_what_is_loaded_goes_on_and_a_restart_needs_the_disk_alone(
    pod_factory: PodFactory, s3_factory: S3Factory, mlflow_factory: MLflowFactory, tiny_adapter: SourceFactory
) -> None:
    own_s3 = s3_factory()
    own_mlflow = mlflow_factory(on_s3=own_s3)
    registry = RegistryHand(own_mlflow)
    registered = registry.register("islander", tiny_adapter(1))
    registry.promote(registered)
    pod = pod_factory(on=own_mlflow)
    pod.wait_serving("islander", 1)
    pod.wait_for(lambda: _num_tried(pod) == 1 or None, "the trial to be told of")
    own_s3.component.stop()
    pod.signal(signal.SIGKILL)
    pod.wait_exit()
    pod.start()
    pod.wait_serving("islander", 1)
    # It passed before, and is not tried again: nothing has used it on the device.
    pod.wait_for(lambda: pod.metric("lorafleet_tier_adapters", tier="host") == 1 or None, "it to be in memory")
    assert _num_tried(pod) == 0
    own_mlflow.component.stop()
    pod.wait_for(lambda: pod.client.report().registry_error, "the registry's absence to be reported")
    assert pod.client.complete("islander", "the cat", max_tokens=4).digest == registered.digest
    assert pod.client.ready()
    # Without either at the start, what served last serves, and of the rest nobody knows.
    pod.signal(signal.SIGKILL)
    pod.wait_exit()
    pod.start()
    pod.wait_serving("islander", 1)
    pod.wait_ready()
    assert pod.client.complete("islander", "the cat", max_tokens=4).digest == registered.digest
    assert pod.http.post("/v1/completions", json={"model": "stranger", "prompt": "the cat"}).status_code == 503
    assert pod.client.report().synced_at is None


def _running(pod: PodProcess) -> bool:
    lines = pod.http.get("/metrics").text.splitlines()
    return any(line.startswith("vllm:num_requests_running") and float(line.rpartition(" ")[2]) > 0 for line in lines)


def _num_tried(pod: PodProcess) -> float:
    return pod.metric("lorafleet_adapter_load_seconds_count", tier="device")


def _refusal(pod: PodProcess) -> int | None:
    status = pod.http.post("/v1/completions", json={"prompt": "the", "max_tokens": 1}).status_code
    return status if status != 200 else None


def _is_running(pid: int) -> bool:
    """Whether a process computes; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
