"""A registry with its controller and pod, as tests move and watch it."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lorafleet_contract.registry import RegistryClient, RegistryEndpoint
from lorafleet_contract.signature import sign
from lorafleet_contract.states import GateStatus
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.audit import AuditEntry, AuditLog
from lorafleet_pipeline.settings import PlatformSettings, S3Settings
from lorafleet_pipeline.stack.component import Component
from lorafleet_pipeline.storage import Storage
from tests.pipeline.registry.fake_pod import ADMIN_TOKEN, BASE_DIGEST, WEBHOOK_SECRET, FakePod

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tests.services import RunningS3

GATE_KEY = "gate-key"


def digest_of(version: int) -> str:
    return f"sha256:{version:064d}"


@dataclass
class Fleet:
    """A registry, its pod, and what tests need to move and watch adapters."""

    settings: PlatformSettings
    pod: FakePod
    mlflow: MlflowClient
    registry: RegistryClient
    component: Component

    def adapter(self, versions: int = 3, base_digest: str = BASE_DIGEST, name: str | None = None) -> str:
        """A new adapter with some versions; its name."""
        name = name or f"adapter-{uuid.uuid4().hex[:8]}"
        self.mlflow.create_registered_model(name)
        for number in range(1, versions + 1):
            tags = {Tag.LORA_DIGEST.value: digest_of(number), Tag.LORA_BASE_DIGEST.value: base_digest}
            self.mlflow.create_model_version(name, f"s3://mlflow/{name}/{number}", tags=tags, await_creation_for=0)
        return name

    def set_gate(self, name: str, version: int, status: GateStatus, key: str = GATE_KEY) -> None:
        """Put a signed gate report beside a version, and its tag."""
        report = {
            "adapter": name,
            "digest": digest_of(version),
            "manifest_digest": "sha256:" + "e" * 64,
            "status": status.value,
            "reason": "lift too small" if status is GateStatus.FAILED else "",
            "checks": [{"name": "min_lift", "passed": status is GateStatus.PASSED, "detail": "0.01 < 0.05"}],
        }
        address = f"s3://mlflow/{name}/{version}/gate/report.json"
        Storage(self.settings.s3).write_bytes(address, json.dumps(sign(report, key)).encode())
        self.mlflow.set_model_version_tag(name, str(version), Tag.GATE_STATUS.value, status.value)

    def set_stage(self, name: str, version: int, stage: str, *, archive_existing: bool = False) -> None:
        with pytest.warns(FutureWarning, match="deprecated"):
            self.mlflow.transition_model_version_stage(name, str(version), stage, archive_existing)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        self.mlflow.set_registered_model_alias(name, alias, version)

    def aliases(self, name: str) -> dict[str, int]:
        return dict(self.registry.get_model(name).aliases)

    def stages(self, name: str) -> dict[int, str]:
        return {item.version: item.stage.value for item in self.registry.search_versions(name)}

    def tags(self, name: str, version: int) -> dict[str, str]:
        return dict(self.registry.get_version(name, version).tags)

    def audit(self, name: str) -> list[AuditEntry]:
        return AuditLog(Storage(self.settings.s3), self.settings.audit_url).read(name)


def eventually(condition: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {limit_s} s"
        time.sleep(0.02)


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Have a thread work until the block ends, however it does."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def settings_of(s3: RunningS3, home: Path, url: str, pods: tuple[str, ...]) -> PlatformSettings:
    return PlatformSettings(
        home=home,
        work_dir=home / "work",
        mlflow_url=url,
        pods=pods,
        s3=S3Settings(s3.endpoint, s3.access_key, s3.secret_key),
        audit_url=f"s3://audit/{home.name}",
        gate_key=GATE_KEY,
        admin_token=ADMIN_TOKEN,
        webhook_secret=WEBHOOK_SECRET,
    )


def fleet_of(settings: PlatformSettings, pod: FakePod, component: Component) -> Fleet:
    from mlflow import MlflowClient

    registry = RegistryClient(RegistryEndpoint(settings.mlflow_url))
    pod.follow(settings.mlflow_url)
    return Fleet(settings, pod, MlflowClient(settings.mlflow_url), registry, component)
