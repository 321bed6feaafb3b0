"""The MLflow server: runs, models and the registry in SQLite, artifacts on S3.

Clients read and write artifacts on S3 directly; the server needs keys only to show them in its pages. It asks nobody
who they are, so that its keys are everybody's who reaches its port.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorafleet_pipeline.stack.component import ComponentPlan, http_probe
from lorafleet_pipeline.stack.database import ServiceDatabase
from lorafleet_pipeline.stack.environment import clean_environment
from lorafleet_pipeline.stack.ports import LOOPBACK
from lorafleet_pipeline.stack.seaweedfs import S3Keys


@dataclass(frozen=True)
class MLflowServer:
    """Settings of the MLflow server. `app_name` names an `mlflow.app` plugin that it runs under."""

    folder: Path
    port: int
    s3_endpoint: str
    keys: S3Keys
    log: Path
    app_name: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def database(self) -> ServiceDatabase:
        """Where runs, models and the registry are kept."""
        return ServiceDatabase(self.folder / "mlflow.db", "mlflow")

    def plan(self) -> ComponentPlan:
        """The component. Its preparation migrates the database of an older version."""
        upgrade = (sys.executable, "-m", "mlflow", "db", "upgrade", self.database.url)
        self.folder.mkdir(parents=True, exist_ok=True)
        return ComponentPlan(
            name="mlflow",
            command=(sys.executable, "-m", "mlflow", "server", *self._options()),
            environment=clean_environment(
                mlflow_client_environment(self.url, self.s3_endpoint)
                | self.keys.environment()
                | {
                    # Its job runners cost ten processes and fifteen seconds, and nothing here uses them.
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "DO_NOT_TRACK": "true",
                }
                | dict(self.environment)
            ),
            folder=self.folder,
            log=self.log,
            probe=http_probe(f"{self.url}/health"),
            url=self.url,
            prepare=upgrade if self.database.needs_migration else None,
            prepare_title="migrating the database",
            before_start=self.database.discard_unfinished,
            on_ready=self.database.remember_whole,
        )

    def _options(self) -> tuple[str, ...]:
        plugin = ("--app-name", self.app_name) if self.app_name else ()
        return (
            *("--host", LOOPBACK, "--port", str(self.port), "--workers", "1"),
            # The pods ask every other second; their questions would be all there is in the log.
            *("--uvicorn-opts", "--no-access-log"),
            *("--backend-store-uri", self.database.url),
            *("--default-artifact-root", "s3://mlflow/artifacts", "--no-serve-artifacts"),
            *plugin,
        )


def mlflow_client_environment(url: str, s3_endpoint: str) -> dict[str, str]:
    """The variables by which MLflow's client finds the server and its artifacts."""
    return {
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_S3_ENDPOINT_URL": s3_endpoint,
        "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "path",
    }
