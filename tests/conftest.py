"""Fixtures shared by all tests: a real S3, a real MLflow server and the real base model.

The services run once for a session, through the same classes that `lorafleet up` uses. Tests that stop or
starve a service take their own from the factories.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lorafleet_pipeline.stack.component import Component, ComponentPlan
from lorafleet_pipeline.stack.mlflow_server import MLflowServer, mlflow_client_environment
from lorafleet_pipeline.stack.ports import free_port
from lorafleet_pipeline.stack.seaweedfs import S3Keys, SeaweedFS, free_ports, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Servers, training and tests share the cores: a thread that waits for another must not keep it from running.
# torch reads this when it is first imported, which is later than here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class RunningS3:
    """A running SeaweedFS with the platform's keys, and the pod's read-only ones in `pod`."""

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


S3Factory = Callable[[], RunningS3]
MLflowFactory = Callable[..., RunningMLflow]


@pytest.fixture(scope="session")
def s3_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Factory]:
    """Starts further S3 servers: `s3_factory()`."""
    with ExitStack() as running:

        def start() -> RunningS3:
            folder = tmp_path_factory.mktemp("s3")
            server = SeaweedFS(
                folder=folder,
                ports=free_ports(),
                platform=S3Keys("platform-key", "platform-secret"),
                pod=S3Keys("pod-key", "pod-secret"),
                log=folder / "s3.log",
            )
            return RunningS3(server, _start(server.plan(), running))

        yield start


@pytest.fixture(scope="session")
def mlflow_factory(tmp_path_factory: pytest.TempPathFactory, s3: RunningS3) -> Iterator[MLflowFactory]:
    """Starts further MLflow servers: `mlflow_factory(app_name="lorafleet", environment={...}, s3=...)`."""
    with ExitStack() as running:

        def start(
            app_name: str | None = None, environment: Mapping[str, str] | None = None, on_s3: RunningS3 | None = None
        ) -> RunningMLflow:
            storage = on_s3 or s3
            folder = tmp_path_factory.mktemp("mlflow")
            server = MLflowServer(
                folder=folder,
                port=free_port(),
                s3_endpoint=storage.endpoint,
                keys=storage.server.platform,
                log=folder / "mlflow.log",
                app_name=app_name,
                environment=environment or {},
            )
            return RunningMLflow(server, _start(server.plan(), running), storage)

        yield start


@pytest.fixture(scope="session")
def s3(s3_factory: S3Factory) -> RunningS3:
    """The session's S3, with the buckets mlflow, datasets, datadocs and audit."""
    return s3_factory()


@pytest.fixture(scope="session")
def mlflow_server(mlflow_factory: MLflowFactory) -> RunningMLflow:
    """The session's MLflow server, without our controller."""
    return mlflow_factory()


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, dequantized once into the user's cache."""
    from lorafleet_pipeline.base_models import resolve_base_model

    return resolve_base_model(BASE_MODEL, None)


def _start(plan: ComponentPlan, running: ExitStack) -> Component:
    component = Component(plan)
    component.start()
    running.callback(component.stop)
    component.wait_ready()
    return component
