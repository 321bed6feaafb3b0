"""A real S3 and a real MLflow server, started through the same classes that `lorafleet up` uses."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorafleet_pipeline.stack.component import Component, ComponentPlan
from lorafleet_pipeline.stack.mlflow_server import MLflowServer, mlflow_client_environment
from lorafleet_pipeline.stack.ports import free_port
from lorafleet_pipeline.stack.seaweedfs import S3Keys, SeaweedFS, free_ports, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class RunningS3:
    """A running SeaweedFS with the platform's keys, and in `server` those of others, which may do less."""

    server: SeaweedFS
    component: Component

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    @property
    def access_key(self) -> str:
        return self.server.platform.access_key

    @property
    def secret_key(self) -> str:
        return self.server.platform.secret_key

    @property
    def pod(self) -> S3Keys:
        return self.server.pod

    def client(self, keys: S3Keys | None = None) -> S3Client:
        return s3_client(self.endpoint, keys or self.server.platform)

    def environment(self) -> dict[str, str]:
        """Variables by which our own code and boto3 reach it."""
        return {"LORAFLEET_S3_ENDPOINT": self.endpoint, **self.server.platform.environment()}


@dataclass(frozen=True)
class RunningMLflow:
    """A running MLflow server whose artifacts stand on `s3`."""

    server: MLflowServer
    component: Component
    s3: RunningS3

    @property
    def url(self) -> str:
        return self.server.url

    def environment(self) -> dict[str, str]:
        """Variables by which our own code and MLflow's client reach it and its artifacts."""
        return (
            {"LORAFLEET_MLFLOW_URL": self.url}
            | mlflow_client_environment(self.url, self.s3.endpoint)
            | self.s3.environment()
        )


def start_s3(folder: Path, running: ExitStack) -> RunningS3:
    """Start an S3 that ends with `running`."""
    server = SeaweedFS(
        folder=folder,
        ports=free_ports(),
        platform=S3Keys("platform-key", "platform-secret"),
        pod=S3Keys("pod-key", "pod-secret"),
        mlflow=S3Keys("mlflow-key", "mlflow-secret"),
        audit=S3Keys("audit-key", "audit-secret"),
        log=folder / "s3.log",
    )
    return RunningS3(server, _start(server.plan(), running))


def start_mlflow(
    folder: Path,
    s3: RunningS3,
    running: ExitStack,
    app_name: str | None = None,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
) -> RunningMLflow:
    """Start an MLflow server that ends with `running`; with our controller inside where `app_name` says so."""
    server = MLflowServer(
        folder=folder,
        port=port or free_port(),
        s3_endpoint=s3.endpoint,
        keys=s3.server.mlflow,
        log=folder / "mlflow.log",
        app_name=app_name,
        environment=environment or {},
    )
    return RunningMLflow(server, _start(server.plan(), running), s3)


def _start(plan: ComponentPlan, running: ExitStack) -> Component:
    component = Component(plan)
    component.start()
    running.callback(component.stop)
    component.wait_ready()
    return component
