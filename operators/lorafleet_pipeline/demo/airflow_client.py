"""The few calls to Airflow's REST interface that the demo needs: unpause, trigger, follow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from lorafleet_pipeline.exceptions import DemoError

_FINISHED = frozenset({"success", "failed"})
_FAILURES = frozenset({"error", "critical"})
_PAGE = 100
_RESTART_LIMIT_S = 90.0
_RESTART_POLL_S = 1.0


@dataclass(frozen=True)
class TaskState:
    """State of one task of a run. `state` is None before it is scheduled."""

    task_id: str
    state: str | None
    try_number: int
    duration_s: float | None


@dataclass(frozen=True)
class RunState:
    """State of a DAG run with its tasks, in no particular order."""

    state: str
    tasks: tuple[TaskState, ...]

    @property
    def finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.state in _FINISHED


class AirflowClient:
    """Calls to one Airflow api-server as one user.

    Every method raises `DemoError` when Airflow does not answer or refuses.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url.rstrip("/")
        # A proxy of the user's could not reach the loopback address.
        self._http = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False)
        answer = self._send("POST", "/auth/token", json={"username": user, "password": password})
        self._http.headers["Authorization"] = f"Bearer {answer['access_token']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def has_dag(self, dag_id: str) -> bool:
        """Whether the DAG has been parsed."""
        return self._request("GET", f"/api/v2/dags/{dag_id}").status_code == httpx.codes.OK

    def import_errors(self) -> list[str]:
        """Import errors of the DAG folder, each with its file."""
        answer = self._send("GET", "/api/v2/importErrors")
        return [
            f"{item['filename']}: {item['stack_trace'].strip().splitlines()[-1]}" for item in answer["import_errors"]
        ]

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run the DAG."""
        self._send("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a run and return its id."""
        # With an id of our own the request can be repeated: a run that is there already is the one that was asked for.
        run_id = f"manual__{datetime.now(UTC).isoformat()}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        path = f"/api/v2/dags/{dag_id}/dagRuns"
        response = self._request("POST", path, json=body)
        if response.status_code != httpx.codes.CONFLICT:
            _require_success(response, "POST", path)
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> RunState:
        """State of a run and of its tasks."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"
        run = self._send("GET", path)
        tasks = self._send("GET", f"{path}/taskInstances", params={"limit": _PAGE})["task_instances"]
        return RunState(run["state"], tuple(_task(item) for item in tasks))

    def failure(self, dag_id: str, run_id: str, task: TaskState) -> str | None:
        """Why the last try of a task failed, as its log has it; None where it came to no log."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task.task_id}/logs/{max(task.try_number, 1)}"
        response = self._request("GET", path, params={"full_content": True}, headers={"Accept": "application/json"})
        lines = response.json()["content"] if response.is_success else []
        errors = [line for line in lines if isinstance(line, Mapping) and line.get("level") in _FAILURES]
        if not errors:
            return None
        raised = errors[-1].get("error_detail") or [{}]
        # The cause, if there is one, comes after what it led to.
        return str(raised[0].get("exc_value") or errors[-1]["event"])

    def _send(self, method: str, path: str, **arguments: Any) -> Any:
        response = self._request(method, path, **arguments)
        _require_success(response, method, path)
        return response.json()

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send a request, again while the api-server is started anew or fails: each of them may come twice.

        Airflow 3.3 on SQLite may wait for itself: what logs a change holds up its event loop until SQLite gives up,
        and so the request that holds the database. It then answers 500.
        """
        deadline = time.monotonic() + _RESTART_LIMIT_S
        while True:
            try:
                response = self._http.request(method, path, **arguments)
                if not response.is_server_error or time.monotonic() > deadline:
                    return response
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise DemoError(
                        f"Airflow at {self.url} does not answer ({error}): see `lorafleet status`"
                    ) from error
            time.sleep(_RESTART_POLL_S)


def _require_success(response: httpx.Response, method: str, path: str) -> None:
    if response.is_error:
        raise DemoError(f"Airflow refused {method} {path} with {response.status_code}: {response.text[:200]}")


def _task(item: Mapping[str, Any]) -> TaskState:
    return TaskState(item["task_id"], item["state"], item["try_number"], item["duration"])
