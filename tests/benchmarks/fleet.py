"""A registry, its S3, and pods that serve from them, for benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from lorafleet_pipeline.stack.ports import free_port
from tests.benchmarks.adapters import RANK
from tests.services import start_mlflow, start_s3
from tests.serving.pod_process import PodProcess, start_pod
from tests.serving.registered_adapter import AdapterSource, RegistryHand

_LOAD_LIMIT_S = 900.0


def start_fleet(folder: Path, running: ExitStack) -> RegistryHand:
    """Start S3 and MLflow."""
    s3 = start_s3(_made(folder / "s3"), running)
    return RegistryHand(start_mlflow(_made(folder / "mlflow"), s3, running))


def fleet_source(model: Path, adapter: Path, base_digest: str, rank: int = RANK) -> AdapterSource:
    """A version as the benchmarks' adapters are registered."""
    return AdapterSource(model, adapter, rank=rank, base_digest=base_digest)


def start_fleet_pod(
    folder: Path,
    model: Path,
    registry: RegistryHand,
    running: ExitStack,
    names: Iterable[str],
    *flags: str,
    overrides: Mapping[str, str] | None = None,
) -> PodProcess:
    """Start a pod on all cores, and wait until it serves these names."""
    pod = start_pod(folder, model, registry.mlflow, running, *_common_flags(), *flags, overrides=overrides)
    pod.wait_for(lambda: pod.client.ready() or None, "the pod to be ready", _LOAD_LIMIT_S)
    for name in names:
        pod.wait_serving(name, 1)
    return pod


def start_base_pod(folder: Path, model: Path, running: ExitStack, *flags: str) -> PodProcess:
    """Start a pod on all cores that serves nothing but the base model, and wait until it does."""
    pod = PodProcess(model, folder, free_port(), {}, *_common_flags(), *flags)
    running.callback(pod.stop)
    pod.wait_ready()
    return pod


def _common_flags() -> tuple[str, ...]:
    return ("--num-threads", str(len(os.sched_getaffinity(0))), "--max-waiting", "1024")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
