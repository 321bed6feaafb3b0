"""What the embedded Airflow is given at its start, and what a user has made of it since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.airflow import USER, Airflow, AirflowSecrets
from lorafleet_pipeline.stack.airflow_entities import POD_CONNECTION, REGISTRY_CONNECTION, TRAINING_POOL
from lorafleet_pipeline.stack.component import Component
from lorafleet_pipeline.stack.ports import free_port

POD, REGISTRY, MOVED = "http://127.0.0.1:8000", "http://127.0.0.1:5000", "http://127.0.0.1:8001"
_POOL_PATH = f"/api/v2/pools/{TRAINING_POOL}"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """An api-server of the stack, ready once."""
    folder = tmp_path_factory.mktemp("airflow")
    (folder / "dags").mkdir()
    settings = Airflow(
        folder=folder,
        port=free_port(),
        dags=folder / "dags",
        secrets=AirflowSecrets("password", "j" * 64, "a" * 64, "bG9yYWZsZWV0LWxvcmFmbGVldC1sb3JhZmxlZXQtbG8="),
        log=lambda name: folder / f"{name}.log",
        registry_url=REGISTRY,
        pod_url=POD,
    )
    component = Component(settings.plans()[0])
    component.prepare()
    component.start()
    try:
        component.wait_ready()
        yield settings
    finally:
        component.stop()


@pytest.fixture
def user(airflow: Airflow) -> Iterator[httpx.Client]:
    """A person at the interface, who leaves pool, connections and memory as the first start has made them."""
    with httpx.Client(base_url=airflow.url, trust_env=False, timeout=30.0) as client:
        login = client.post("/auth/token", json={"username": USER, "password": airflow.secrets.password})
        client.headers["Authorization"] = f"Bearer {login.raise_for_status().json()['access_token']}"
        yield client
        for path in (_POOL_PATH, *(_path(name.id) for name in (REGISTRY_CONNECTION, POD_CONNECTION))):
            assert client.delete(path).status_code in (httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND)
        _memory(airflow).unlink(missing_ok=True)
        _start(airflow)


def _path(conn_id: str) -> str:
    return f"/api/v2/connections/{conn_id}"


def _memory(airflow: Airflow) -> Path:
    return airflow.folder / "addresses.json"


def _start(airflow: Airflow) -> None:
    """What happens each time that the api-server has become ready."""
    on_ready = airflow.plans()[0].on_ready
    assert on_ready is not None
    on_ready()


def _change_pods(user: httpx.Client, **fields: Any) -> None:
    body = {"connection_id": POD_CONNECTION.id, "conn_type": POD_CONNECTION.type, **fields}
    user.patch(_path(POD_CONNECTION.id), params={"update_mask": list(fields)}, json=body).raise_for_status()


def _pods(user: httpx.Client) -> dict[str, Any]:
    return dict(user.get(_path(POD_CONNECTION.id)).raise_for_status().json())


def test_pool_and_connections_are_there_after_the_first_start(user: httpx.Client) -> None:
    assert user.get(_POOL_PATH).json()["slots"] == 1
    registry = user.get(_path(REGISTRY_CONNECTION.id)).json()
    assert (registry["host"], registry["conn_type"]) == (REGISTRY, REGISTRY_CONNECTION.type)
    assert (_pods(user)["host"], _pods(user)["conn_type"]) == (POD, POD_CONNECTION.type)


def test_what_a_user_has_changed_survives_a_restart(airflow: Airflow, user: httpx.Client) -> None:
    pool = {"pool": TRAINING_POOL, "slots": 2, "include_deferred": True, "description": "Two at a time"}
    user.patch(_POOL_PATH, json=pool).raise_for_status()
    _change_pods(user, host="http://pods.example", extra='{"urls": "http://127.0.0.1:9000"}')
    for restarted in (airflow, replace(airflow, pod_url=MOVED)):
        _start(restarted)
        kept = user.get(_POOL_PATH).json()
        assert (kept["slots"], kept["description"]) == (2, "Two at a time")
        assert _pods(user)["host"] == "http://pods.example"


def test_address_follows_its_service_and_leaves_the_users_further_pods(airflow: Airflow, user: httpx.Client) -> None:
    _change_pods(user, extra='{"urls": "http://127.0.0.1:9000"}', description="mine")
    _start(replace(airflow, pod_url=MOVED))
    moved = _pods(user)
    assert (moved["host"], moved["description"]) == (MOVED, "mine")
    assert "http://127.0.0.1:9000" in moved["extra"]
    # Without pods of its own, the stack says nothing about them, and remembers where they were.
    _start(replace(airflow, pod_url=None))
    assert _pods(user)["host"] == MOVED
    _start(airflow)
    assert _pods(user)["host"] == POD


def test_address_of_a_home_without_memory_follows_where_it_is_on_this_machine(
    airflow: Airflow, user: httpx.Client
) -> None:
    _memory(airflow).unlink()
    _start(replace(airflow, pod_url=MOVED))
    assert _pods(user)["host"] == MOVED
    _memory(airflow).unlink()
    _change_pods(user, host="http://pods.example")
    _start(airflow)
    assert _pods(user)["host"] == "http://pods.example"


def test_connection_that_a_user_has_deleted_is_made_again(airflow: Airflow, user: httpx.Client) -> None:
    user.delete(_path(POD_CONNECTION.id)).raise_for_status()
    _start(airflow)
    assert _pods(user)["host"] == POD


def test_damaged_memory_is_an_error_with_a_remedy(airflow: Airflow, user: httpx.Client) -> None:
    _memory(airflow).write_text("[]")
    with pytest.raises(StackError, match=r"addresses\.json is damaged: delete it"):
        _start(airflow)
