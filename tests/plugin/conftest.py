"""Airflow's own application with the plugin in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.airflow_home import migrate, prepare

if TYPE_CHECKING:
    from starlette.testclient import TestClient

prepare()


@pytest.fixture(scope="session")
def api_server() -> Iterator[TestClient]:
    """Airflow's api-server, with every plugin, in this process."""
    migrate()
    from airflow.api_fastapi.app import create_app
    from starlette.testclient import TestClient

    with TestClient(create_app(apps="all")) as client:
        yield client
