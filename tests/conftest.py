"""Fixtures shared by all tests: a real S3, a real MLflow server and the real base model.

The services run once for a session, through the same classes that `lorafleet up` uses. Tests that stop or
starve a service take their own from the factories.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from lorafleet_contract.openmp import wait_briefly
from tests.services import RunningMLflow, RunningS3, start_mlflow, start_s3

# Servers, training and tests share the cores: a thread that waits for another must not keep it from running.
wait_briefly()
# Threads that have no core of their own, because the workers have them, wait for each other at every product.
_NUM_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(2, (os.cpu_count() or 1) // _NUM_WORKERS))))

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


FAULT_REPEATS = int(os.environ.get("LORAFLEET_FAULT_REPEATS", "1"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat every test that injects a fault as often as `make faults` asks."""
    if FAULT_REPEATS > 1 and metafunc.definition.get_closest_marker("faults"):
        metafunc.fixturenames.append("fault_repeat")
        metafunc.parametrize("fault_repeat", range(FAULT_REPEATS))


class StackTogether(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist tells no types.
    """Gives the tests of a file to one worker, and those of the whole stack too: a second stack would cost minutes."""

    def _split_scope(self, nodeid: str) -> str:
        folder = "tests/e2e"
        return folder if nodeid.startswith(folder) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> StackTogether:
    """How several workers share the tests."""
    return StackTogether(config, log)


S3Factory = Callable[[], RunningS3]
MLflowFactory = Callable[..., RunningMLflow]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningS3]:
    """The session's S3, with the buckets mlflow, datasets, datadocs and audit."""
    with ExitStack() as running:
        yield start_s3(tmp_path_factory.mktemp("s3"), running)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, s3: RunningS3) -> Iterator[RunningMLflow]:
    """The session's MLflow server, without our controller."""
    with ExitStack() as running:
        yield start_mlflow(tmp_path_factory.mktemp("mlflow"), s3, running)


@pytest.fixture(scope="module")
def s3_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Factory]:
    """Starts further S3 servers: `s3_factory()`."""
    with ExitStack() as running:
        yield lambda: start_s3(tmp_path_factory.mktemp("s3"), running)


@pytest.fixture(scope="module")
def mlflow_factory(tmp_path_factory: pytest.TempPathFactory, s3: RunningS3) -> Iterator[MLflowFactory]:
    """Starts further MLflow servers: `mlflow_factory(app_name="lorafleet", environment={...}, s3=...)`."""
    with ExitStack() as running:

        def start(
            app_name: str | None = None, environment: Mapping[str, str] | None = None, on_s3: RunningS3 | None = None
        ) -> RunningMLflow:
            return start_mlflow(tmp_path_factory.mktemp("mlflow"), on_s3 or s3, running, app_name, environment)

        yield start


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, dequantized once into the user's cache."""
    from lorafleet_pipeline.base_models import resolve_base_model

    return resolve_base_model(BASE_MODEL, None)
