"""What an interrupted first start leaves is not in the way of the next one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lorafleet_contract.registry import RegistryClient, RegistryEndpoint
from lorafleet_pipeline.stack.component import Component
from lorafleet_pipeline.stack.database import ServiceDatabase
from lorafleet_pipeline.stack.mlflow_server import MLflowServer
from lorafleet_pipeline.stack.ports import free_port
from tests.services import RunningS3


@pytest.fixture
def database(tmp_path: Path) -> ServiceDatabase:
    return ServiceDatabase(tmp_path / "service.db", "lorafleet")


def _create_half(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        connection.commit()


def test_unfinished_database_is_discarded_and_a_whole_one_kept(database: ServiceDatabase) -> None:
    _create_half(database.file)
    database.discard_unfinished()
    assert not database.file.exists()
    _create_half(database.file)
    database.remember_whole()
    database.discard_unfinished()
    assert database.file.exists()


def test_database_of_another_version_needs_migration(
    database: ServiceDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not database.needs_migration
    database.remember_whole()
    assert not database.needs_migration
    installed: Callable[[str], str] = lambda distribution: "99.0"  # noqa: E731
    monkeypatch.setattr("importlib.metadata.version", installed)
    assert database.needs_migration


def test_mlflow_starts_after_its_first_start_was_interrupted(tmp_path: Path, s3: RunningS3) -> None:
    server = MLflowServer(tmp_path, free_port(), s3.endpoint, s3.server.platform, tmp_path / "mlflow.log")
    _create_half(server.database.file)
    component = Component(server.plan())
    component.start()
    try:
        assert component.wait_ready()
        assert RegistryClient(RegistryEndpoint(server.url)).search_models() == []
    finally:
        component.stop()
    assert server.database.is_whole
