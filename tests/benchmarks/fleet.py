"""A registry, its S3, and pods that serve from them, for benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.adapters import RANK
from tests.services import start_mlflow, start_s3
from tests.serving.pod_process import PodProcess, start_pod
from tests.serving.registered_adapter import AdapterSource, RegistryHand

_LOAD_LIMIT_S = 900.0


def start_fleet(folder: Path, running: ExitStack) -> RegistryHand:
    """Start S3 and MLflow."""
    s3 = start_s3(_made(folder / "s3"), running)
    return RegistryHand(start_mlflow(_made(folder / "mlflow"), s3, running))


def fleet_source(model: Path, adapter: Path, base_digest: str) -> AdapterSource:
    """A version as the benchmarks' adapters are registered."""
    return AdapterSource(model, adapter, rank=RANK, base_digest=base_digest)


def start_fleet_pod(
    folder: Path, model: Path, registry: RegistryHand, running: ExitStack, names: Iterable[str], *flags: str
) -> PodProcess:
    """Start a pod on all cores, and wait until it serves these names."""
    num_cores = str(len(os.sched_getaffinity(0)))
    pod = start_pod(
        folder, model, registry.mlflow, running, "--num-threads", num_cores, "--max-waiting", "1024", *flags
    )
    pod.wait_for(lambda: pod.client.ready() or None, "the pod to be ready", _LOAD_LIMIT_S)
    for name in names:
        pod.wait_serving(name, 1)
    return pod


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
