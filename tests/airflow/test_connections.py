"""Airflow connections override the platform's addresses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from lorafleet_airflow.connections import base_url, platform_settings, pod_urls, registry_endpoint
from lorafleet_airflow.exceptions import InvalidConnection
from lorafleet_airflow.hooks.pod import LoRAFleetPodHook
from lorafleet_airflow.hooks.registry import LoRAFleetRegistryHook


def _connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, **fields: Any) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "http://mlflow:5000"}, "http://mlflow:5000"),
        ({"host": "http://mlflow:5000/"}, "http://mlflow:5000"),
        ({"host": "mlflow", "port": 5000}, "http://mlflow:5000"),
        ({"host": "mlflow", "schema": "https"}, "https://mlflow"),
        ({"host": "https://mlflow", "port": 8443}, "https://mlflow:8443"),
    ],
)
def test_an_address_may_be_written_in_either_way(fields: dict[str, Any], url: str) -> None:
    assert base_url(Connection(conn_id="c", conn_type="lorafleet_mlflow", **fields)) == url


def test_a_connection_without_host_is_named() -> None:
    with pytest.raises(InvalidConnection, match="'c' has no host"):
        base_url(Connection(conn_id="c", conn_type="lorafleet_mlflow"))


def test_without_connections_the_environment_counts(platform: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFLEET_PODS", "http://pod-a:8000")
    settings = platform_settings()
    assert (settings.mlflow_url, settings.pods) == ("http://127.0.0.1:9", ("http://pod-a:8000",))


def test_connections_override_addresses_and_token(platform: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _connect(monkeypatch, "lorafleet_registry", conn_type="lorafleet_mlflow", host="http://mlflow:5000")
    pod = {"host": "http://a:8000", "password": "secret", "extra": {"urls": "http://b:8000, http://a:8000/"}}
    _connect(monkeypatch, "lorafleet_pods", conn_type="lorafleet_pod", **pod)
    settings = platform_settings()
    assert settings.mlflow_url == "http://mlflow:5000"
    assert settings.pods == ("http://a:8000", "http://b:8000")
    assert settings.admin_token == "secret"
    assert "secret" not in repr(settings)


def test_a_registry_connection_suffices_without_any_other_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFLEET_HOME", str(tmp_path))
    monkeypatch.delenv("LORAFLEET_MLFLOW_URL", raising=False)
    _connect(monkeypatch, "lorafleet_registry", conn_type="lorafleet_mlflow", host="http://mlflow:5000")
    assert platform_settings().mlflow_url == "http://mlflow:5000"


def test_a_connection_that_was_named_must_exist(platform: Path, airflow_database: Path) -> None:
    with pytest.raises(AirflowNotFoundException):
        platform_settings(registry_conn_id="mine")


def test_a_pod_connection_must_name_a_pod() -> None:
    with pytest.raises(InvalidConnection, match="names no pod"):
        pod_urls(Connection(conn_id="c", conn_type="lorafleet_pod"))


def test_credentials_of_the_registry_are_sent_and_not_shown() -> None:
    fields = {"host": "http://m", "login": "ada", "password": "hidden", "extra": json.dumps({"timeout_s": 3})}
    endpoint = registry_endpoint(Connection(conn_id="c", conn_type="lorafleet_mlflow", **fields))
    assert endpoint.headers["Authorization"].startswith("Basic ")
    assert endpoint.timeout_s == 3
    assert "hidden" not in repr(endpoint)
    token = Connection(conn_id="c", conn_type="lorafleet_mlflow", host="http://m", extra=json.dumps({"token": "t"}))
    assert registry_endpoint(token).headers["Authorization"] == "Bearer t"


def test_steps_ask_the_registry_with_the_connections_credentials(
    platform: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of-the-environment")
    _connect(monkeypatch, "lorafleet_registry", conn_type="lorafleet_mlflow", host="http://m")
    assert platform_settings().registry_endpoint().headers == {"Authorization": "Bearer of-the-environment"}
    _connect(monkeypatch, "lorafleet_registry", conn_type="lorafleet_mlflow", host="http://m", login="a", password="b")
    assert platform_settings().registry_endpoint().headers == {"Authorization": "Basic YTpi"}


def test_the_registry_is_told_that_a_dag_calls(platform: Path) -> None:
    assert "dag" in registry_endpoint(None).headers.values()


def test_testing_a_registry_that_is_away_says_so(platform: Path) -> None:
    works, message = LoRAFleetRegistryHook().test_connection()
    assert not works
    assert "does not answer" in message


def test_testing_pods_names_the_one_that_is_away(platform: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LoRAFleetPodHook().test_connection()[0] is False
    monkeypatch.setenv("LORAFLEET_PODS", "http://127.0.0.1:9")
    works, message = LoRAFleetPodHook().test_connection()
    assert not works
    assert "http://127.0.0.1:9" in message
