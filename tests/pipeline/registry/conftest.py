"""A real MLflow server with the controller inside, and a pod that follows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from lorafleet_pipeline.settings import AUDIT_KEY, AUDIT_SECRET
from lorafleet_pipeline.stack.component import Component
from lorafleet_pipeline.stack.mlflow_server import MLflowServer
from lorafleet_pipeline.stack.ports import free_port
from tests.pipeline.registry.fake_pod import ADMIN_TOKEN, WEBHOOK_SECRET, FakePod
from tests.pipeline.registry.fleet import Fleet, fleet_of, settings_of

if TYPE_CHECKING:
    from tests.services import RunningS3


@pytest.fixture(scope="package")
def fleet(s3: RunningS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A registry with the controller as its app plugin, and one pod."""
    home, port, pod = tmp_path_factory.mktemp("fleet"), free_port(), FakePod()
    with pod.running():
        settings = settings_of(s3, home, f"http://127.0.0.1:{port}", (pod.url,))
        server = MLflowServer(
            folder=home / "mlflow",
            port=port,
            s3_endpoint=s3.endpoint,
            keys=s3.server.mlflow,
            log=home / "mlflow.log",
            app_name="lorafleet",
            environment={
                "LORAFLEET_HOME": str(home),
                "LORAFLEET_MLFLOW_URL": settings.mlflow_url,
                "LORAFLEET_PODS": pod.url,
                "LORAFLEET_ADMIN_TOKEN": ADMIN_TOKEN,
                "LORAFLEET_WEBHOOK_SECRET": WEBHOOK_SECRET,
                "LORAFLEET_AUDIT_URL": settings.audit_url,
                # Of the controller's own, and no others: they suffice.
                "LORAFLEET_S3_ENDPOINT": s3.endpoint,
                AUDIT_KEY: s3.server.audit.access_key,
                AUDIT_SECRET: s3.server.audit.secret_key,
            },
        )
        component = Component(server.plan())
        component.start()
        try:
            component.wait_ready()
            yield fleet_of(settings, pod, component)
        finally:
            component.stop()
