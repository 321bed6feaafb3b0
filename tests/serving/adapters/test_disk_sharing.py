"""Pods of one node on one folder: bytes come once from S3, for all of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_contract.digest import base_digest
from lorafleet_pipeline.stack.ports import free_port
from lorafleet_serving.adapters.disk import DiskTier
from lorafleet_serving.adapters.fetcher import Fetcher
from lorafleet_serving.adapters.messages import Fetched, FetcherEvent, FetchOrder, HandOrder, NotFetched
from lorafleet_serving.config import FetcherConfig
from lorafleet_serving.exceptions import FilesGone
from tests.services import RunningS3
from tests.serving.adapters.disk_process import DiskProcess
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.network_proxy import NetworkProxy
from tests.serving.pod_process import PodProcess
from tests.serving.registered_adapter import GATE_KEY, Registered, RegistryHand


@pytest.fixture
def proxy(s3: RunningS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[NetworkProxy]:
    """On the way to the session's S3."""
    for key, value in s3.environment().items():
        monkeypatch.setenv(key, value)
    with NetworkProxy(s3.endpoint) as proxy:
        yield proxy


@pytest.fixture
def registered(registry: RegistryHand, tiny_adapter: SourceFactory, name: str) -> Registered:
    return registry.register(name, tiny_adapter(61))


@pytest.fixture
def config(tmp_path: Path, proxy: NetworkProxy) -> FetcherConfig:
    return FetcherConfig(tmp_path / "cache", s3_endpoint=proxy.url, gate_key=GATE_KEY)


@pytest.fixture
def order(registered: Registered, tiny_model: Path) -> FetchOrder:
    base = base_digest(tiny_model)
    return FetchOrder(1, registered.name, registered.version, registered.digest, base, registered.address)


@pytest.fixture
def weights_bytes(tiny_adapter: SourceFactory) -> int:
    return (tiny_adapter(61).folder / "adapter_model.safetensors").stat().st_size


def _fetched(events: list[FetcherEvent]) -> list[Fetched]:
    return [event for event in events if isinstance(event, Fetched)]


def test_two_who_want_the_same_at_once_download_it_once(
    config: FetcherConfig, order: FetchOrder, proxy: NetworkProxy, weights_bytes: int
) -> None:
    events: list[FetcherEvent] = []
    fetchers = [Fetcher(config, events.append) for _ in range(3)]
    threads = [threading.Thread(target=fetcher.execute, args=(order,)) for fetcher in fetchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.folder for event in _fetched(events)] == [_fetched(events)[0].folder] * 3, events
    assert weights_bytes <= proxy.num_answered < 2 * weights_bytes


def test_one_that_is_killed_in_its_download_leaves_the_turn_to_the_next(
    config: FetcherConfig, order: FetchOrder
) -> None:
    killed = DiskProcess(config.cache_dir, config.disk_bytes)
    assert killed.call("begin", order.digest, bytes(1000)) == "begun"
    events: list[FetcherEvent] = []
    waiting = threading.Thread(target=Fetcher(config, events.append).execute, args=(order,))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive(), "it did not wait for its turn"
    killed.kill()
    waiting.join()
    assert len(_fetched(events)) == 1, events


def test_one_that_does_not_come_to_an_end_holds_up_nobody_for_ever(config: FetcherConfig, order: FetchOrder) -> None:
    frozen = DiskProcess(config.cache_dir, config.disk_bytes)
    assert frozen.call("begin", order.digest, bytes(1000)) == "begun"
    events: list[FetcherEvent] = []
    Fetcher(replace(config, fetch_limit_s=0.3), events.append).execute(order)
    assert len(_fetched(events)) == 1, events
    frozen.kill()


def test_what_another_pod_evicts_at_once_is_told_as_gone(
    config: FetcherConfig, order: FetchOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = DiskTier.admit

    def admit_and_evict(tier: DiskTier, staged: Path, digest: str) -> Path:
        folder = admit(tier, staged, digest)
        DiskTier(config.cache_dir, 1)  # A pod that has room for nothing.
        return folder

    monkeypatch.setattr(DiskTier, "admit", admit_and_evict)
    events: list[FetcherEvent] = []
    by_hand = HandOrder(2, "by-hand", order.address, base_names=())
    Fetcher(config, events.append).execute(by_hand)
    (refused,) = [event for event in events if isinstance(event, NotFetched)]
    assert isinstance(refused.error, FilesGone)


def test_a_second_pod_on_a_folder_serves_what_the_first_has_brought(
    pod: PodProcess,
    pod_factory: PodFactory,
    registry: RegistryHand,
    registered: Registered,
) -> None:
    registry.promote(registered)
    pod.wait_serving(registered.name, 1)
    second = pod_factory("--cache-dir", str(pod.cache))
    second.wait_serving(registered.name, 1)
    second.wait_ready()
    assert second.metric("lorafleet_tier_hits_total", tier="disk") > 0
    assert second.metric("lorafleet_tier_misses_total", tier="disk") == 0
    answers = [item.client.complete(registered.name, "the cat", max_tokens=4) for item in (pod, second)]
    assert answers[0].text == answers[1].text
    assert len(list(pod.cache.glob("pods/*/catalog.json"))) == 2
    # One that has the name of another would take its memory of the registry for its own.
    name = next(path.name for path in pod.cache.glob("pods/*")).removeprefix("pod-").replace("%3A", ":")
    third = pod_factory("--cache-dir", str(pod.cache), "--pod-id", name)
    assert third.wait_exit() != 0
    assert "--pod-id" in third.log.read_text()
    # Whoever comes when that one was killed has the name, and needs no S3 for what is on disk.
    own_name = second.client.report().pod_id
    second.signal(signal.SIGKILL)
    second.wait_exit()
    away = f"http://127.0.0.1:{free_port()}"
    heir = pod_factory("--cache-dir", str(pod.cache), "--pod-id", own_name, "--s3-endpoint", away)
    heir.wait_serving(registered.name, 1)
    heir.wait_ready()
    assert heir.client.complete(registered.name, "the cat", max_tokens=4).text == answers[0].text
    assert len(list(pod.cache.glob("pods/*/catalog.json"))) == 2
