"""Fixtures of the serving tests: a tiny model, adapters for it, a registry to write to, and a running pod."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from lorafleet_pipeline.stack.ports import free_port
from tests.services import RunningMLflow
from tests.serving.pod_process import PodProcess, start_pod
from tests.serving.registered_adapter import AdapterSource, RegistryHand
from tests.serving.tiny_model import make_blank_tokenizer, make_tiny_adapter, make_tiny_model

PodFactory = Callable[..., PodProcess]
SourceFactory = Callable[[int], AdapterSource]


@pytest.fixture(scope="module", autouse=True)
def _threads_as_before() -> Iterator[None]:
    """An engine settles the threads of its process, which is that of the next tests."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama whose every token is ASCII text."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with so many positions that its longest answers take a fast machine ten seconds."""
    return make_tiny_model(tmp_path_factory.mktemp("long") / "long-llama", max_positions=1 << 14)


@pytest.fixture(scope="session")
def blank_pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodProcess]:
    """A pod without a registry, whose tokenizer takes a text's first blank away and knows bytes."""
    folder = tmp_path_factory.mktemp("blank") / "blank-llama"
    make_tiny_model(folder, max_positions=1024, tokenizer=make_blank_tokenizer())
    # In bf16 an answer may turn out otherwise with what is computed beside it.
    pod = PodProcess(folder, tmp_path_factory.mktemp("blank-pod"), free_port(), {}, "--dtype", "float32")
    try:
        pod.wait_ready()
        yield pod
    finally:
        pod.stop()


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SourceFactory:
    """Random adapters of the tiny model, one for each seed."""
    return _adapters(tiny_model, tmp_path_factory.mktemp("tiny-adapters"))


@pytest.fixture(scope="session")
def long_adapter(long_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SourceFactory:
    """Random adapters of the long model, one for each seed."""
    return _adapters(long_model, tmp_path_factory.mktemp("long-adapters"))


def _adapters(model: Path, root: Path) -> SourceFactory:
    def make(seed: int) -> AdapterSource:
        folder = root / str(seed)
        if not folder.is_dir():
            make_tiny_adapter(model, folder, seed)
        return AdapterSource(model, folder)

    return make


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"adapter-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def registry(mlflow_server: RunningMLflow) -> RegistryHand:
    """The session's registry, written by hand."""
    return RegistryHand(mlflow_server)


@pytest.fixture(scope="module")
def pod_factory(
    tiny_model: Path, mlflow_server: RunningMLflow, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PodFactory]:
    """Starts pods on the session's registry: `pod_factory("--flag", "value", on=mlflow, model=folder)`."""
    with ExitStack() as running:

        def start(*flags: str, on: RunningMLflow = mlflow_server, model: Path = tiny_model) -> PodProcess:
            folder = tmp_path_factory.mktemp("pod")
            return start_pod(folder, model, on, running, "--poll-interval", "1.0", *flags)

        yield start


@pytest.fixture(scope="session")
def pod(
    tiny_model: Path, mlflow_server: RunningMLflow, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PodProcess]:
    """A pod that tests share; they use adapter names of their own, and leave it running."""
    with ExitStack() as running:
        flags = ("--poll-interval", "1.0")
        started = start_pod(tmp_path_factory.mktemp("pod"), tiny_model, mlflow_server, running, *flags)
        started.wait_ready()
        yield started
