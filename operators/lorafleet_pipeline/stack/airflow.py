"""Airflow: api-server, scheduler, dag-processor and triggerer, each a component of its own.

They share SQLite, the LocalExecutor and one generated password. What the DAGs need in its database is put there once
the api-server answers; this package never imports Airflow.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.airflow_entities import POD_CONNECTION, REGISTRY_CONNECTION, AirflowEntities
from lorafleet_pipeline.stack.component import ComponentPlan, Probe, http_probe
from lorafleet_pipeline.stack.database import ServiceDatabase
from lorafleet_pipeline.stack.environment import clean_environment
from lorafleet_pipeline.stack.options import AIRFLOW_COMPONENTS
from lorafleet_pipeline.stack.ports import LOOPBACK
from lorafleet_pipeline.stack.private_file import write_private

USER = "admin"
_API_SERVER = AIRFLOW_COMPONENTS[0]
_HEARTBEATS = {
    "airflow-scheduler": ("scheduler", "latest_scheduler_heartbeat"),
    "airflow-dag-processor": ("dag_processor", "latest_dag_processor_heartbeat"),
    "airflow-triggerer": ("triggerer", "latest_triggerer_heartbeat"),
}
_REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class AirflowSecrets:
    """The secrets that Airflow's components share among themselves."""

    password: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    api_secret: str = field(repr=False)
    fernet_key: str = field(repr=False)


@dataclass(frozen=True)
class Airflow:
    """Settings of the embedded Airflow. `environment` is what its tasks need to reach the platform."""

    folder: Path
    port: int
    dags: Path
    secrets: AirflowSecrets
    log: Callable[[str], Path]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    registry_url: str | None = None
    pod_url: str | None = None

    @property
    def url(self) -> str:
        """The address of the web interface and the REST API."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def database(self) -> ServiceDatabase:
        """Airflow's metadata database."""
        return ServiceDatabase(self.folder / "airflow.db", "apache-airflow")

    def plans(self) -> list[ComponentPlan]:
        """The four components. The api-server's preparation migrates the database for all of them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_private(self._passwords, json.dumps({USER: self.secrets.password}) + "\n")
        environment = clean_environment(self._environment() | dict(self.environment))
        needs_migration = self.database.needs_migration or not self.database.is_whole
        api_server = ComponentPlan(
            name=_API_SERVER,
            command=self._command("api-server", "--host", LOOPBACK, "--port", str(self.port), "--workers", "1"),
            environment=environment,
            folder=self.folder,
            log=self.log(_API_SERVER),
            probe=http_probe(f"{self.url}/api/v2/monitor/health"),
            url=self.url,
            prepare=self._command("db", "migrate") if needs_migration else None,
            prepare_title="migrating the database",
            before_start=self.database.discard_unfinished,
            on_prepared=self.database.remember_whole,
            on_ready=self._put_entities,
        )
        return [api_server, *(self._daemon(name, environment) for name in AIRFLOW_COMPONENTS[1:])]

    def _daemon(self, name: str, environment: Mapping[str, str]) -> ComponentPlan:
        command = name.removeprefix("airflow-")
        # The logs lie on this disk; their servers would listen on every address of the machine.
        options = () if command == "dag-processor" else ("--skip-serve-logs",)
        return ComponentPlan(
            name=name,
            command=self._command(command, *options),
            environment=environment,
            folder=self.folder,
            log=self.log(name),
            probe=self._heartbeat_probe(name),
            after_prepared=frozenset({_API_SERVER}),
        )

    def _command(self, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "airflow", *arguments)

    @property
    def _passwords(self) -> Path:
        return self.folder / "passwords.json"

    def _environment(self) -> dict[str, str]:
        return {
            "AIRFLOW_HOME": str(self.folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__FERNET_KEY": self.secrets.fernet_key,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__AUTH_MANAGER": (
                "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
            ),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self._passwords),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": LOOPBACK,
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__SECRET_KEY": self.secrets.api_secret,
            "AIRFLOW__API_AUTH__JWT_SECRET": self.secrets.jwt_secret,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database.url,
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.folder / "logs"),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            # A spec that a user adds shows up within seconds.
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "15",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "15",
            # Tasks that a killed scheduler had running are found within seconds, and not after five minutes.
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
            "DO_NOT_TRACK": "true",
        }

    def _heartbeat_probe(self, name: str) -> Probe:
        """A probe that wants a heartbeat later than the process: one from before a crash proves nothing."""
        job, field_name = _HEARTBEATS[name]

        def probe(since: float) -> str | None:
            try:
                answer = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=_REQUEST_TIMEOUT_S, trust_env=False)
                health = answer.raise_for_status().json().get(job) or {}
            except (httpx.HTTPError, ValueError) as error:
                # An api-server that is just ending may send half an answer.
                return f"the api-server cannot tell: {error}"
            heartbeat = health.get(field_name)
            if health.get("status") != "healthy" or heartbeat is None:
                return f"it is {health.get('status') or 'silent'}"
            return None if datetime.fromisoformat(heartbeat).timestamp() >= since else "no heartbeat yet"

        return probe

    def _put_entities(self) -> None:
        addresses = {REGISTRY_CONNECTION: self.registry_url, POD_CONNECTION: self.pod_url}
        ours = {connection: url for connection, url in addresses.items() if url is not None}
        entities = AirflowEntities(self.folder / "addresses.json", ours)
        with httpx.Client(base_url=self.url, timeout=_REQUEST_TIMEOUT_S, trust_env=False) as client:
            try:
                login = client.post("/auth/token", json={"username": USER, "password": self.secrets.password})
                client.headers["Authorization"] = f"Bearer {login.raise_for_status().json()['access_token']}"
                entities.put(client)
            except httpx.HTTPError as error:
                reason = str(error).partition("\n")[0]
                raise StackError(f"Airflow's pool and connections could not be created: {reason}") from error
