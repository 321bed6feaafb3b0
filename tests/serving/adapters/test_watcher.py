"""What a pod sees of a real registry, at a look at everything and at a look at one name."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import pytest
from mlflow import MlflowClient

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.registry import ModelVersion, RegisteredModel, RegistryClient, RegistryEndpoint
from lorafleet_contract.tags import Tag
from lorafleet_serving.adapters.nudges import BURST, PAUSE_S
from lorafleet_serving.adapters.watcher import DesiredAdapter, RegistryLook, RegistryWatcher
from tests.services import RunningMLflow

BASE = "sha256:" + "b" * 64
WAIT_S = 30.0


@dataclass
class Shelf:
    """One registered model of a real registry, and a watcher of the base its versions are for."""

    mlflow: MlflowClient
    client: RegistryClient
    watcher: RegistryWatcher
    looks: SimpleQueue[RegistryLook | str]
    name: str = field(default_factory=lambda: f"adapter-{uuid4().hex[:8]}")

    def add(self, base: str = BASE) -> int:
        tags = {Tag.LORA_DIGEST.value: f"sha256:{uuid4().hex * 2}", Tag.LORA_BASE_DIGEST.value: base}
        source = f"s3://mlflow/{uuid4().hex}"
        return int(self.mlflow.create_model_version(self.name, source=source, tags=tags).version)

    def point(self, alias: Alias, version: int) -> None:
        self.client.set_alias(self.name, alias, version)

    def seen(self, look: RegistryLook) -> DesiredAdapter:
        return look.adapters[self.name]


class AliasedOnly(RegistryClient):
    """Reads no version that was not asked for by number."""

    def search_versions(self, name: str | None = None) -> list[ModelVersion]:
        raise AssertionError(f"every version of {name} was read")


def make_watcher(
    client: RegistryClient, looks: SimpleQueue[RegistryLook | str], interval_s: float = 3600.0
) -> RegistryWatcher:
    return RegistryWatcher(client, BASE, interval_s, on_look=looks.put, on_error=looks.put)


@pytest.fixture
def shelf(mlflow_server: RunningMLflow) -> Shelf:
    looks: SimpleQueue[RegistryLook | str] = SimpleQueue()
    client = RegistryClient(RegistryEndpoint(mlflow_server.url))
    shelf = Shelf(MlflowClient(mlflow_server.url), client, make_watcher(client, looks), looks)
    shelf.mlflow.create_registered_model(shelf.name)
    return shelf


@contextmanager
def running(watcher: RegistryWatcher) -> Iterator[RegistryWatcher]:
    watcher.start()
    try:
        yield watcher
    finally:
        watcher.stop()


def test_a_look_sees_aliases_and_the_versions_of_its_own_base(shelf: Shelf) -> None:
    ours, foreign = shelf.add(), shelf.add("sha256:" + "f" * 64)
    shelf.point(Alias.CHAMPION, ours)
    shelf.point(Alias.CHALLENGER, foreign)
    for look in (shelf.watcher.look(), shelf.watcher.look_at(shelf.name)):
        assert set(shelf.seen(look).versions) == {ours}
        assert shelf.seen(look).wanted() == {ours: ("champion",)}


def test_a_look_at_a_name_follows_its_alias_and_reads_what_aliases_name_alone(shelf: Shelf) -> None:
    versions = [shelf.add() for _ in range(4)]
    shelf.point(Alias.CHAMPION, versions[0])
    shelf.point(Alias.CHAMPION, versions[2])
    endpoint = RegistryEndpoint(shelf.client._endpoint.url)
    look = make_watcher(AliasedOnly(endpoint), shelf.looks).look_at(shelf.name)
    assert set(shelf.seen(look).versions) == {versions[2]}
    assert shelf.seen(look).wanted() == {versions[2]: ("champion",)}


def test_a_look_at_a_name_keeps_the_versions_without_an_alias(shelf: Shelf) -> None:
    old, new = shelf.add(), shelf.add()
    shelf.point(Alias.CHAMPION, old)
    shelf.watcher.look()
    shelf.point(Alias.CHAMPION, new)
    for _ in range(2):  # At the second, no alias named `old` at the look before either.
        assert set(shelf.seen(shelf.watcher.look_at(shelf.name)).versions) == {old, new}


def test_a_version_that_was_archived_with_its_alias_taken_is_seen_withdrawn(shelf: Shelf) -> None:
    version, other = shelf.add(), shelf.add()
    shelf.point(Alias.CHAMPION, version)
    assert not shelf.seen(shelf.watcher.look()).versions[version].withdrawn
    shelf.client.transition_stage(shelf.name, version, Stage.ARCHIVED)
    # While it is champion, it was archived to make room for the next.
    assert not shelf.seen(shelf.watcher.look_at(shelf.name)).versions[version].withdrawn
    shelf.point(Alias.CHAMPION, other)
    assert shelf.seen(shelf.watcher.look_at(shelf.name)).versions[version].withdrawn


def test_a_deleted_version_is_gone_at_the_next_look_at_its_name(shelf: Shelf) -> None:
    version, other = shelf.add(), shelf.add()
    shelf.point(Alias.CHAMPION, version)
    shelf.watcher.look()
    shelf.mlflow.delete_model_version(shelf.name, str(version))
    seen = shelf.seen(shelf.watcher.look_at(shelf.name))
    assert set(seen.versions) == {other}
    assert seen.wanted() == {}


def test_a_changed_tag_of_an_aliased_version_changes_its_fingerprint_unless_serving_wrote_it(shelf: Shelf) -> None:
    version = shelf.add()
    shelf.point(Alias.CHAMPION, version)

    def fingerprint() -> str:
        return shelf.seen(shelf.watcher.look_at(shelf.name)).versions[version].fingerprint

    before = fingerprint()
    shelf.client.set_version_tag(shelf.name, version, Tag.SERVE_STATE, "ready")
    assert fingerprint() == before
    shelf.client.set_version_tag(shelf.name, version, Tag.GATE_STATUS, "waived")
    assert fingerprint() != before


@pytest.mark.parametrize("name", ["nobody-of-that-name", "not a name'"])
def test_a_look_at_a_name_that_is_no_adapter_sees_nothing(shelf: Shelf, name: str) -> None:
    assert shelf.watcher.look_at(name) == RegistryLook({}, name)


def test_a_deleted_model_is_seen_no_more(shelf: Shelf) -> None:
    shelf.add()
    assert shelf.name in shelf.watcher.look().adapters
    shelf.mlflow.delete_registered_model(shelf.name)
    assert shelf.watcher.look_at(shelf.name).adapters == {}


def test_a_nudge_is_a_look_at_once(shelf: Shelf) -> None:
    version = shelf.add()
    with running(shelf.watcher):
        first = shelf.looks.get(timeout=WAIT_S)
        assert isinstance(first, RegistryLook)
        assert first.name is None
        shelf.point(Alias.CHAMPION, version)
        shelf.watcher.nudge(shelf.name)
        second = shelf.looks.get(timeout=WAIT_S)
    assert isinstance(second, RegistryLook)
    assert second.name == shelf.name
    assert shelf.seen(second).wanted() == {version: ("champion",)}


def test_a_registry_that_is_away_is_told_and_looked_for_again() -> None:
    looks: SimpleQueue[RegistryLook | str] = SimpleQueue()
    client = RegistryClient(RegistryEndpoint("http://127.0.0.1:9", timeout_s=1.0))
    with running(make_watcher(client, looks, interval_s=0.01)):
        for _ in range(2):
            error = looks.get(timeout=WAIT_S)
            assert isinstance(error, str)
            assert "http://127.0.0.1:9" in error


class OneModel(RegistryClient):
    """Has no eyes for other models, which other tests make; counts its calls."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(RegistryEndpoint(shelf.client._endpoint.url))
        self.name = shelf.name
        self.calls: SimpleQueue[str] = SimpleQueue()

    def call(self, method: str, path: str, *arguments: Any, **more: Any) -> dict[str, Any]:
        self.calls.put(path)
        return super().call(method, path, *arguments, **more)

    def search_models(self) -> list[RegisteredModel]:
        return [self.get_model(self.name)]

    def search_versions(self, name: str | None = None) -> list[ModelVersion]:
        return super().search_versions(name or self.name)

    def search_changed_versions(self, since: int, name: str | None = None) -> list[ModelVersion]:
        return super().search_changed_versions(since, name or self.name)


def _wanted(shelf: Shelf, look: RegistryLook | str) -> dict[int, tuple[str, ...]]:
    assert isinstance(look, RegistryLook), look
    return shelf.seen(look).wanted()


def test_a_nudge_to_fifty_pods_is_fifty_looks_at_the_one_name(shelf: Shelf) -> None:
    old, new = shelf.add(), shelf.add()
    shelf.point(Alias.CHAMPION, old)
    client = OneModel(shelf)
    with ExitStack() as stack:
        watchers = [make_watcher(client, shelf.looks) for _ in range(50)]
        for watcher in watchers:
            stack.enter_context(running(watcher))
        first = [shelf.looks.get(timeout=WAIT_S) for _ in watchers]
        assert {look.name for look in first if isinstance(look, RegistryLook)} == {None}
        shelf.point(Alias.CHAMPION, new)
        while not client.calls.empty():
            client.calls.get()
        for watcher in watchers:
            watcher.nudge(shelf.name)
        looks = [shelf.looks.get(timeout=WAIT_S) for _ in watchers]
    assert all(isinstance(look, RegistryLook) and look.name == shelf.name for look in looks)
    assert all(_wanted(shelf, look) == {new: ("champion",)} for look in looks)
    calls = [client.calls.get() for _ in range(client.calls.qsize())]
    # The model, and the versions that its alias came from and went to: nothing that grows with the registry.
    assert (calls.count("registered-models/search"), calls.count("model-versions/get")) == (50, 100)
    assert len(calls) == 150


def test_a_thousand_nudges_for_one_name_are_few_looks_and_the_last_change_is_seen(shelf: Shelf) -> None:
    version = shelf.add()
    with running(make_watcher(OneModel(shelf), shelf.looks)) as watcher:
        shelf.looks.get(timeout=WAIT_S)
        began, pace = time.monotonic(), threading.Event()
        for _ in range(999):
            watcher.nudge(shelf.name)
            pace.wait(0.001)
        shelf.point(Alias.CHAMPION, version)
        watcher.nudge(shelf.name)
        num_looks = 1
        while not _wanted(shelf, shelf.looks.get(timeout=WAIT_S)):
            num_looks += 1
    assert num_looks <= BURST + (time.monotonic() - began) / PAUSE_S + 1


def test_names_without_end_do_not_keep_a_pod_from_looking_at_everything(shelf: Shelf) -> None:
    shelf.add()
    with running(make_watcher(OneModel(shelf), shelf.looks, interval_s=0.1)) as watcher:
        for number in range(3000):
            watcher.nudge(f"{shelf.name}-{number}")
        looks = [shelf.looks.get(timeout=WAIT_S)]
        while sum(isinstance(look, RegistryLook) and look.name is None for look in looks) < 3:
            looks.append(shelf.looks.get(timeout=WAIT_S))
    assert len(looks) < 3000
