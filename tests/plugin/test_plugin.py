"""The Fleet view in Airflow: closed to strangers, and true for everybody else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fastapi.routing import APIRoute

from lorafleet_plugin.app import create_app
from lorafleet_plugin.plugin import URL_PREFIX, LoRAFleetPlugin

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from tests.services import RunningMLflow


def _routes() -> list[tuple[str, str]]:
    return [
        (method, route.path)
        for route in create_app().routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods)
    ]


@pytest.fixture(scope="module")
def login(api_server: TestClient) -> dict[str, str]:
    answer = api_server.post("/auth/token", json={"username": "vera", "password": "vera"})
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


@pytest.mark.parametrize(("method", "path"), _routes())
def test_every_route_refuses_strangers(api_server: TestClient, method: str, path: str) -> None:
    assert api_server.request(method, f"{URL_PREFIX}{path}").status_code == 401


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_routes_that_take_no_dependency_do_not_exist(api_server: TestClient, path: str) -> None:
    assert api_server.get(f"{URL_PREFIX}{path}").status_code == 404


def test_the_application_has_no_route_that_a_dependency_does_not_reach() -> None:
    assert all(isinstance(route, APIRoute) for route in create_app().routes)


def test_a_made_up_token_is_refused(api_server: TestClient) -> None:
    answer = api_server.get(f"{URL_PREFIX}/adapters", headers={"Authorization": "Bearer made-up"})
    assert answer.status_code in (401, 403)


def test_a_viewer_sees_the_page_and_all_its_parts(api_server: TestClient, login: dict[str, str]) -> None:
    page = api_server.get(f"{URL_PREFIX}/", headers=login)
    assert page.status_code == 200
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert set(parts) == {"fleet.js", "fleet.css"}
    for part in parts:
        assert api_server.get(f"{URL_PREFIX}/{part}", headers=login).status_code == 200


def test_the_page_holds_no_inline_code_that_its_policy_forbids() -> None:
    page = Path(__file__).parents[2] / "plugins" / "lorafleet_plugin" / "static" / "fleet.html"
    assert not re.search(r"<script>|<style>|\bon\w+=|style=", page.read_text())


def test_adapters_come_from_the_registry_and_silent_pods_are_named(
    api_server: TestClient,
    login: dict[str, str],
    mlflow_server: RunningMLflow,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from tests.airflow.watched_fleet import WatchedFleet

    monkeypatch.setenv("LORAFLEET_HOME", str(tmp_path))
    monkeypatch.setenv("LORAFLEET_MLFLOW_URL", mlflow_server.url)
    monkeypatch.setenv("LORAFLEET_PODS", "http://127.0.0.1:9")
    fleet = WatchedFleet(mlflow_server)
    name = fleet.adapter(versions=2)
    fleet.registry.set_alias(name, "champion", 2)
    answer = api_server.get(f"{URL_PREFIX}/adapters", headers=login).json()
    (adapter,) = [item for item in answer["adapters"] if item["name"] == name]
    assert (adapter["aliases"], adapter["num_versions"], adapter["gate"]) == ({"champion": 2}, 2, "passed")
    assert answer["silent_pods"] == ["http://127.0.0.1:9"]


def test_a_registry_that_is_away_is_said_without_its_address(
    api_server: TestClient, login: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORAFLEET_HOME", str(tmp_path))
    monkeypatch.setenv("LORAFLEET_MLFLOW_URL", "http://127.0.0.1:9")
    answer = api_server.get(f"{URL_PREFIX}/adapters", headers=login)
    assert answer.status_code == 502
    assert "127.0.0.1" not in answer.text


def test_airflow_lists_the_view_in_its_navigation(api_server: TestClient, login: dict[str, str]) -> None:
    (view,) = LoRAFleetPlugin().external_views
    assert view["destination"] == "nav"
    # Without a route of its own, Airflow opens a new tab, where its login would not follow behind a prefix.
    assert view["url_route"]
    plugins = api_server.get("/api/v2/plugins/importErrors", headers=login).json()
    assert plugins["import_errors"] == []
