"""A real pod in its own processes, and ways to wait for what it reports."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from lorafleet_contract.fleet import AdapterReport, VersionReport
from lorafleet_contract.states import ServeState
from lorafleet_pipeline.stack.ports import free_port
from lorafleet_pipeline.stack.seaweedfs import ARTIFACT_BUCKET
from lorafleet_serving.client import PodClient, PodUnreachable
from tests.services import RunningMLflow
from tests.serving.registered_adapter import GATE_KEY

ADMIN_TOKEN = "admin-token-of-the-tests"
WEBHOOK_SECRET = "webhook-secret-of-the-tests"

_LIMIT_S = 60.0
_FIRST_START_LIMIT_S = 240.0
_LOOK_S = 0.02

Found = TypeVar("Found")


def metric_in(text: str, name: str, **labels: str) -> float:
    """Sum of a metric's samples of that name in an exposition, over all other labels."""
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


class PodProcess:
    """One running pod."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        port: int,
        environment: Mapping[str, str],
        *flags: str,
        within: Sequence[str] = (),
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.client = PodClient(self.url, ADMIN_TOKEN)
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self.log = folder / "pod.log"
        self.cache = folder / "cache"
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._command = [*within, sys.executable, "-m", "lorafleet_serving"]
        self._command += ["--port", str(port), "--model", str(model)]
        self._command += ["--cache-dir", str(self.cache), "--num-threads", "1", *flags]
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def pid(self) -> int:
        """Process id of the front."""
        return self._process.pid

    def start(self) -> None:
        """Start the processes; does not wait."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Wait until the pod takes requests; the first of all compiles its operators before."""
        self.wait_for(lambda: self.client.ready() or None, "the pod to be ready", _FIRST_START_LIMIT_S)

    def wait_exit(self) -> int:
        """Wait until the front has ended; its exit status."""
        return self._process.wait(_LIMIT_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the front."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """End the pod, by force if it must be, and close the connections to it."""
        self.client.close()
        self.http.close()
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def child_pids(self) -> dict[str, int]:
        """Process ids of engine and fetcher, as the log tells them last."""
        found = {}
        for line in self.log.read_text().splitlines():
            for name in ("engine", "fetcher"):
                if f"{name} process started, pid " in line:
                    found[name] = int(line.rpartition(" ")[2])
        return found

    def wait_for(self, look: Callable[[], Found | None], what: str, limit_s: float = _LIMIT_S) -> Found:
        """Wait until a look finds something."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"the pod ended:\n{self.log.read_text()[-3000:]}"
            # While it starts, nobody answers.
            with contextlib.suppress(PodUnreachable, httpx.TransportError):
                found = look()
                if found is not None:
                    return found
            time.sleep(_LOOK_S)
        raise AssertionError(f"waited {limit_s:.0f} s in vain for {what}:\n{self.log.read_text()[-3000:]}")

    def adapter(self, name: str) -> AdapterReport | None:
        """What the pod reports about a name."""
        return next((item for item in self.client.report().adapters if item.name == name), None)

    def version(self, name: str, version: int) -> VersionReport | None:
        """What the pod reports about a version."""
        adapter = self.adapter(name)
        return next((item for item in adapter.versions if item.version == version), None) if adapter else None

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples of that name, over all other labels."""
        return metric_in(self.http.get("/metrics").text, name, **labels)

    def wait_serving(self, name: str, version: int, limit_s: float = _LIMIT_S) -> None:
        """Wait until a bare name reaches a version."""

        def look() -> bool | None:
            adapter = self.adapter(name)
            return True if adapter is not None and adapter.serving == version else None

        self.wait_for(look, f"{name} to serve version {version}", limit_s)

    def wait_state(self, name: str, version: int, state: ServeState) -> VersionReport:
        """Wait until a version is in a state."""

        def look() -> VersionReport | None:
            found = self.version(name, version)
            return found if found is not None and found.state is state else None

        return self.wait_for(look, f"{name}:{version} to be {state}")


def start_pod(
    folder: Path,
    model: Path,
    mlflow: RunningMLflow,
    running: ExitStack,
    *flags: str,
    overrides: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> PodProcess:
    """Start a pod on a registry; it ends with `running`. Does not wait.

    `overrides` are variables of its environment, `within` a command that runs its command.
    """
    environment = {
        "LORAFLEET_MLFLOW_URL": mlflow.url,
        "LORAFLEET_ADMIN_TOKEN": ADMIN_TOKEN,
        "LORAFLEET_GATE_KEY": GATE_KEY,
        "LORAFLEET_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "LORAFLEET_S3_ENDPOINT": mlflow.s3.endpoint,
        "LORAFLEET_S3_BUCKETS": ARTIFACT_BUCKET,
        **mlflow.s3.pod.environment(),
        **(overrides or {}),
    }
    pod = PodProcess(model, folder, free_port(), environment, *flags, within=within)
    running.callback(pod.stop)
    return pod
