"""Moves of a champion become events, once each, over restarts too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from airflow.triggers.base import BaseEventTrigger

from lorafleet_airflow.assets import any_champion, champion_asset
from lorafleet_airflow.triggers.registry import RegistryEventTrigger
from lorafleet_contract.aliases import Alias
from tests.airflow.conftest import WriteSpec
from tests.airflow.watched_fleet import WatchedFleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.services import RunningMLflow


class Store:
    """Airflow's store of one asset."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def aget(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        assert value is not None
        self.values[key] = value


async def _polls(*polls: Mapping[str, int]) -> AsyncIterator[Mapping[str, int]]:
    for poll in polls:
        yield poll


async def _events(store: Store | None, *polls: Mapping[str, int]) -> list[dict[str, Any]]:
    trigger = RegistryEventTrigger(adapter="a")
    trigger.asset_state_store = store
    return [event.payload async for event in trigger.filter_shared_stream(_polls(*polls))]


async def test_the_first_look_reports_the_champion_that_stands() -> None:
    assert await _events(Store(), {"a": 3}) == [{"adapter": "a", "version": 3, "previous": None}]


async def test_a_champion_that_stays_is_told_once() -> None:
    assert len(await _events(Store(), {"a": 3}, {"a": 3}, {"a": 3})) == 1


async def test_each_move_is_told_with_the_version_before() -> None:
    told = await _events(Store(), {"a": 1}, {"a": 2}, {"a": 1})
    assert [(event["previous"], event["version"]) for event in told] == [(None, 1), (1, 2), (2, 1)]


async def test_other_adapters_are_nobodys_business() -> None:
    assert await _events(Store(), {"b": 1}, {"b": 2}) == []


async def test_a_champion_set_again_after_it_was_removed_is_told_again() -> None:
    assert [event["version"] for event in await _events(Store(), {"a": 1}, {}, {"a": 1})] == [1, 1]


async def test_a_restart_repeats_nothing_and_misses_nothing() -> None:
    store = Store()
    await _events(store, {"a": 1})
    assert await _events(store, {"a": 1}) == []
    assert [event["version"] for event in await _events(store, {"a": 2})] == [2]


async def test_an_event_that_was_not_taken_is_told_again() -> None:
    store = Store()
    trigger = RegistryEventTrigger(adapter="a")
    trigger.asset_state_store = store
    stream = trigger.filter_shared_stream(_polls({"a": 1}))
    await anext(stream)
    await stream.aclose()
    assert len(await _events(store, {"a": 1})) == 1


async def test_without_a_store_it_remembers_while_it_runs() -> None:
    assert len(await _events(None, {"a": 1}, {"a": 1}, {"a": 2})) == 2


def test_it_is_made_again_from_what_it_stores() -> None:
    trigger = RegistryEventTrigger(adapter="a", registry_conn_id="other", poll_interval_s=2.0)
    path, arguments = trigger.serialize()
    assert path == "lorafleet_airflow.triggers.registry.RegistryEventTrigger"
    assert RegistryEventTrigger(**json.loads(json.dumps(arguments))).serialize() == trigger.serialize()


def test_all_triggers_of_a_registry_share_one_poll_loop() -> None:
    first, second = RegistryEventTrigger(adapter="a"), RegistryEventTrigger(adapter="b")
    assert first.shared_stream_key() == second.shared_stream_key()
    assert BaseEventTrigger.hash(*first.serialize()) != BaseEventTrigger.hash(*second.serialize())
    other = RegistryEventTrigger(adapter="a", registry_conn_id="other")
    assert other.shared_stream_key() != first.shared_stream_key()


def test_a_champion_asset_carries_its_watcher() -> None:
    asset = champion_asset("a")
    (watcher,) = asset.watchers
    assert watcher.trigger.serialize()[1]["adapter"] == "a"
    assert asset.uri == "x-lorafleet://adapters/a/champion"


def test_without_specs_there_is_nothing_to_wait_for(specs: Path, write_spec: WriteSpec) -> None:
    assert any_champion(specs) is None
    write_spec()
    assert any_champion(specs) is not None


async def test_a_real_registry_is_polled_and_an_outage_is_sat_out(
    mlflow_server: RunningMLflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = WatchedFleet(mlflow_server)
    name = fleet.adapter(versions=2)
    fleet.registry.set_alias(name, Alias.CHAMPION, 1)
    monkeypatch.setenv("AIRFLOW_CONN_WATCHED", json.dumps({"conn_type": "lorafleet_mlflow", "host": mlflow_server.url}))
    trigger = RegistryEventTrigger(adapter=name, registry_conn_id="watched", poll_interval_s=0.05)
    events = trigger.run()
    assert (await anext(events)).payload["version"] == 1
    away = json.dumps({"conn_type": "lorafleet_mlflow", "host": "http://127.0.0.1:9"})
    monkeypatch.setenv("AIRFLOW_CONN_WATCHED", away)
    polls = trigger.open_shared_stream(trigger.serialize()[1])
    waiting = asyncio.ensure_future(anext(polls))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    fleet.registry.set_alias(name, Alias.CHAMPION, 2)
    monkeypatch.setenv("AIRFLOW_CONN_WATCHED", json.dumps({"conn_type": "lorafleet_mlflow", "host": mlflow_server.url}))
    assert (await waiting)[name] == 2
    assert (await anext(events)).payload == {"adapter": name, "version": 2, "previous": 1}
