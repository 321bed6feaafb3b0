"""Fixtures of the provider's tests: Airflow's home, specs, a task's context, and a pod that plays its part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.airflow_home import migrate, prepare

prepare()

SPEC: Mapping[str, Any] = {
    "name": "summaries",
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "dataset": {"train": "s3://datasets/summaries/train.jsonl"},
    "prompt": "{{ text }}\n",
    "completion": "{{ summary }}",
    "evaluation": {"metric": "rougeL"},
}

WriteSpec = Callable[..., Path]


@dataclass
class TaskInstance:
    """The part of a task instance that operators use."""

    dag_id: str = "adapter_summaries"
    run_id: str = "manual__2026-01-01T00:00:00+00:00"
    map_index: int = -1
    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    """An empty spec folder."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    return folder


@pytest.fixture
def write_spec(specs: Path) -> WriteSpec:
    """Writes a spec file: `write_spec("file", name=..., schedule=...)`."""

    def write(stem: str = "summaries", **changes: Any) -> Path:
        path = specs / f"{stem}.yaml"
        path.write_text(yaml.safe_dump({**SPEC, **changes}))
        return path

    return write


@pytest.fixture
def task_instance() -> TaskInstance:
    """A task instance that remembers what was pushed."""
    return TaskInstance()


@pytest.fixture
def context(task_instance: TaskInstance) -> dict[str, Any]:
    """A task's context."""
    return {"ti": task_instance, "params": {}}


@pytest.fixture
def called_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test call `execute` itself, which Airflow reserves for its task runner."""
    from airflow.sdk.bases.operator import ExecutorSafeguard

    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a platform whose services do not run; returns its home."""
    monkeypatch.setenv("LORAFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LORAFLEET_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setenv("LORAFLEET_MLFLOW_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LORAFLEET_GATE_KEY", "gate")
    monkeypatch.delenv("LORAFLEET_PODS", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def airflow_database() -> Path:
    """Airflow's home with its database."""
    return migrate()
