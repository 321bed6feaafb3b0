"""What an administrator does with adapters in a running pod's memory."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from lorafleet_contract.states import Tier
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.pod_process import ADMIN_TOKEN, PodProcess
from tests.serving.registered_adapter import Registered, RegistryHand

ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


def act(pod: PodProcess, action: str, adapter: str, headers: dict[str, str] = ADMIN) -> httpx.Response:
    return pod.http.post(f"/v1/adapters/{action}", json={"adapter": adapter}, headers=headers)


def is_in_memory(pod: PodProcess, registered: Registered) -> bool:
    version = pod.version(registered.name, registered.version)
    assert version is not None
    return Tier.HOST in version.tiers


@pytest.fixture
def served(pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> Registered:
    """Bytes of its own: actions are on digests."""
    registered = registry.register(f"managed-{uuid4().hex[:8]}", tiny_adapter(uuid4().int % 10**6))
    registry.promote(registered)
    pod.wait_serving(registered.name, 1)
    assert pod.http.post("/v1/completions", json={"model": registered.name, "prompt": "a"}).status_code == 200
    return registered


@pytest.fixture(scope="module")
def long_names(registry: RegistryHand, long_adapter: SourceFactory) -> list[str]:
    """Adapters of a model whose answers may take long."""
    names = [f"long-{uuid4().hex[:8]}" for _ in range(2)]
    for number, name in enumerate(names):
        registry.promote(registry.register(name, long_adapter(number + 90)))
    return names


@pytest.fixture(scope="module")
def long_pod(pod_factory: PodFactory, long_model: Path, long_names: list[str]) -> PodProcess:
    return start(pod_factory, long_model, long_names)


def start(pod_factory: PodFactory, model: Path, names: list[str], *flags: str) -> PodProcess:
    pod = pod_factory(*flags, model=model)
    for name in names:
        pod.wait_serving(name, 1)
    pod.wait_ready()
    return pod


def test_what_is_evicted_comes_back_when_it_is_asked_for(pod: PodProcess, served: Registered) -> None:
    answer = act(pod, "evict", served.name)
    assert (answer.status_code, "host" in answer.json()["tiers"]) == (200, False)
    assert not is_in_memory(pod, served)
    assert pod.client.complete(served.name, "the cat", max_tokens=2).digest == served.digest
    assert is_in_memory(pod, served)


def test_what_is_in_use_stays(long_pod: PodProcess, long_names: list[str]) -> None:
    asked = {"model": long_names[0], "prompt": "a", "max_tokens": 16_000, "ignore_eos": True, "stream": True}
    with long_pod.http.stream("POST", "/v1/completions", json=asked) as response:
        lines = response.iter_lines()  # Kept: the request ends with what reads its answer.
        assert "text" in next(lines)
        for action in ("evict", "reload"):
            answer = act(long_pod, action, long_names[0])
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, 409)
            assert "in use by 1" in answer.text


def test_what_is_pinned_stays_until_it_is_unpinned(pod: PodProcess, served: Registered) -> None:
    assert act(pod, "evict", served.name).status_code == 200
    pinned = act(pod, "pin", f"{served.name}@champion").json()
    assert (pinned["pinned"], "host" in pinned["tiers"]) == (True, True)
    refused = act(pod, "evict", served.name)
    assert (refused.status_code, "is pinned" in refused.text) == (409, True)
    assert not act(pod, "unpin", served.name).json()["pinned"]
    assert act(pod, "evict", served.name).status_code == 200


def test_what_is_reloaded_is_hashed_again_and_mended(pod: PodProcess, served: Registered) -> None:
    weights = pod.cache / "adapters" / served.digest.removeprefix("sha256:") / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    answer = act(pod, "reload", served.name)
    assert (answer.status_code, "host" in answer.json()["tiers"]) == (200, True)
    assert weights.read_bytes() == good
    assert pod.client.complete(served.name, "the cat", max_tokens=2).digest == served.digest


@pytest.mark.parametrize("action", ["pin", "unpin", "evict", "reload"])
def test_only_the_administrator_acts(pod: PodProcess, served: Registered, action: str) -> None:
    assert act(pod, action, served.name, {}).status_code == 401
    assert act(pod, action, served.name, {"Authorization": "Bearer wrong"}).status_code == 401
    assert is_in_memory(pod, served)


@pytest.mark.parametrize(
    ("action", "adapter", "status"),
    [
        ("evict", "nobody", 404),
        ("evict", "../etc", 404),
        ("pin", "", 422),
        ("pin", "n" * 201, 422),
        ("pin", "tiny-llama", 422),
        ("pin", "s3://mlflow/x", 403),
        ("explode", "nobody", 422),
    ],
)
def test_what_cannot_be_done_is_told(pod: PodProcess, action: str, adapter: str, status: int) -> None:
    answer = act(pod, action, adapter)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})


def test_every_action_is_in_the_audit_log(pod: PodProcess, served: Registered) -> None:
    act(pod, "pin", served.name)
    act(pod, "unpin", served.name)
    act(pod, "evict", "nobody")
    act(pod, "evict", served.name, {})
    lines = [line.partition("lorafleet_serving.audit: ")[2] for line in pod.log.read_text().splitlines()]
    told = [json.loads(line) for line in lines if line]
    assert [item["action"] for item in told if item["adapter"] == served.name] == ["pin", "unpin"]
    assert "there is no adapter 'nobody'" in next(item["outcome"] for item in told if item["adapter"] == "nobody")


def test_no_more_than_half_of_the_tier_is_pinned_by_hand(
    pod_factory: PodFactory, long_model: Path, long_pod: PodProcess, long_names: list[str]
) -> None:
    for name in long_names:
        assert act(long_pod, "pin", name).status_code == 200
    one = long_pod.metric("lorafleet_tier_bytes", tier="host") / long_pod.metric("lorafleet_tier_adapters", tier="host")
    tight = start(pod_factory, long_model, long_names, "--adapter-host-bytes", str(int(3.5 * one)))
    assert act(tight, "pin", long_names[0]).status_code == 200
    assert act(tight, "pin", long_names[0]).status_code == 200
    full = act(tight, "pin", long_names[1])
    assert (full.status_code, "raise --adapter-host-bytes" in full.text) == (507, True)
