"""Calls to Airflow while its api-server fails for a moment: repeated where that does no harm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from lorafleet_pipeline.demo import airflow_client
from lorafleet_pipeline.demo.airflow_client import AirflowClient
from lorafleet_pipeline.exceptions import DemoError
from tests.http_server import Server, running

RUNS = "/api/v2/dags/one/dagRuns"


class FailingAirflow:
    """An api-server that answers a path with the statuses given for it, and else well."""

    def __init__(self) -> None:
        self.statuses: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str, dict[str, object]]] = []
        airflow = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                airflow.asked.append((self.command, self.path, body))
                planned = airflow.statuses.get(self.path, [])
                self.send_response(planned.pop(0) if planned else 200)
                text = json.dumps({"access_token": "x", "import_errors": []}).encode()
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_PATCH = do_POST = _answer

            def log_message(self, *_: object) -> None:
                """Nothing to the terminal."""

        self.server = Server(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def bodies(self, path: str) -> list[dict[str, object]]:
        return [body for _, asked, body in self.asked if asked == path]


@pytest.fixture
def airflow() -> Iterator[FailingAirflow]:
    airflow = FailingAirflow()
    with running(airflow.server):
        yield airflow


@pytest.fixture
def client(airflow: FailingAirflow, monkeypatch: pytest.MonkeyPatch) -> Iterator[AirflowClient]:
    monkeypatch.setattr(airflow_client, "_RESTART_POLL_S", 0.01)
    with AirflowClient(airflow.url, "user", "password") as client:
        yield client


def test_an_unpause_that_fails_for_a_moment_is_repeated(airflow: FailingAirflow, client: AirflowClient) -> None:
    airflow.statuses["/api/v2/dags/one"] = [500, 503]
    client.unpause("one")
    assert airflow.bodies("/api/v2/dags/one") == [{"is_paused": False}] * 3


def test_a_run_is_asked_for_again_under_the_same_id(airflow: FailingAirflow, client: AirflowClient) -> None:
    airflow.statuses[RUNS] = [500]
    run_id = client.trigger("one", {"steps": 3})
    first, second = airflow.bodies(RUNS)
    assert first == second
    assert (first["dag_run_id"], first["conf"]) == (run_id, {"steps": 3})


def test_a_run_that_was_made_by_a_request_that_failed_is_taken(airflow: FailingAirflow, client: AirflowClient) -> None:
    airflow.statuses[RUNS] = [500, 409]
    assert client.trigger("one", {}) == airflow.bodies(RUNS)[0]["dag_run_id"]


def test_what_airflow_refuses_is_told_at_once(airflow: FailingAirflow, client: AirflowClient) -> None:
    airflow.statuses[RUNS] = [403]
    with pytest.raises(DemoError, match=r"POST .*dagRuns with 403"):
        client.trigger("one", {})
    assert len(airflow.bodies(RUNS)) == 1


def test_an_airflow_that_fails_for_good_is_told(
    airflow: FailingAirflow, client: AirflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airflow_client, "_RESTART_LIMIT_S", 0.5)
    airflow.statuses["/api/v2/importErrors"] = [500] * 1000
    with pytest.raises(DemoError, match="with 500"):
        client.import_errors()
    assert len(airflow.asked) > 2
