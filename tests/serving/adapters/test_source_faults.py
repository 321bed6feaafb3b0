"""S3 fails in every way while a version is promoted: what serves goes on, the reason is told, and it heals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_contract.states import ServeState
from lorafleet_contract.webhook import DELIVERY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, webhook_signature
from lorafleet_serving.client import PodUnreachable
from tests.services import RunningMLflow
from tests.serving.conftest import SourceFactory
from tests.serving.network_proxy import NetworkProxy
from tests.serving.pod_process import WEBHOOK_SECRET, PodProcess, start_pod
from tests.serving.registered_adapter import Registered, RegistryHand

pytestmark = pytest.mark.faults

WEIGHTS = "adapter/adapter_model.safetensors"
RESIDENT = "resident"
FORBIDDEN_BUCKET = "datasets"
"""One that the pod is told to read from, and whose keys may not."""
SLOW = 1500.0
"""Bytes a second at which an adapter takes many seconds."""
_CALLERS = 2
_ANSWER_TOKENS = 8
_MOUNT = 'mount -t tmpfs -o size=16m none "$0" && exec "$@"'


@dataclass(frozen=True)
class Beset:
    """A pod that reaches S3 by a network that fails, and what it serves meanwhile."""

    pod: PodProcess
    network: NetworkProxy
    registry: RegistryHand
    resident: Registered

    @contextmanager
    def unaffected(self) -> Iterator[None]:
        """Callers ask for what is resident while the block runs: each is answered, always alike."""
        done = threading.Event()
        answers: list[tuple[int, str, str]] = []
        callers = [threading.Thread(target=self._ask_on, args=(done, answers)) for _ in range(_CALLERS)]
        for caller in callers:
            caller.start()
        try:
            yield
        finally:
            done.set()
            for caller in callers:
                caller.join()
        assert answers
        assert {(status, digest) for status, digest, _ in answers} == {(200, self.resident.digest)}
        assert len({text for *_, text in answers}) == 1

    def heal(self, registered: Registered) -> None:
        """Mend the network; the version is to serve then, and nothing to be left over."""
        self.network.heal()
        self.pod.client.nudge(registered.name, WEBHOOK_SECRET)
        self.pod.wait_serving(registered.name, registered.version)
        answer = self.pod.client.complete(registered.name, "the cat", max_tokens=_ANSWER_TOKENS)
        assert answer.digest == registered.digest
        self.check_conserved()

    def check_conserved(self) -> None:
        """Nothing is in use that nobody uses, and no tier holds more than it may, or what nobody knows."""
        for series in ("lorafleet_requests_in_flight", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
            self.pod.wait_for(lambda series=series: self.pod.metric(series) == 0 or None, f"{series} to be 0")  # type: ignore[misc]
        self.pod.wait_for(lambda: self._num_leases() == 0 or None, "no adapter to be in use")
        assert list((self.pod.cache / "staging").rglob("*.safetensors")) == []

    def _num_leases(self) -> int:
        return sum(version.in_flight for item in self.pod.client.report().adapters for version in item.versions)

    def _ask_on(self, done: threading.Event, answers: list[tuple[int, str, str]]) -> None:
        body = {"model": RESIDENT, "prompt": "the cat", "max_tokens": _ANSWER_TOKENS}
        with httpx.Client(base_url=self.pod.url, timeout=60, trust_env=False) as http:
            while not done.is_set() or not answers:
                answer = http.post("/v1/completions", json=body)
                text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text
                answers.append((answer.status_code, answer.headers.get("x-lorafleet-digest", ""), text))


@pytest.fixture(scope="module")
def beset(
    tiny_model: Path,
    tiny_adapter: SourceFactory,
    mlflow_server: RunningMLflow,
    registry: RegistryHand,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Beset]:
    with ExitStack() as running:
        network = running.enter_context(NetworkProxy(mlflow_server.s3.endpoint))
        overrides = {
            "LORAFLEET_S3_ENDPOINT": network.url,
            "LORAFLEET_S3_BUCKETS": f"mlflow,{FORBIDDEN_BUCKET}",
        }
        # In bf16 an answer may turn out otherwise with what is computed beside it.
        flags = ("--poll-interval", "0.5", "--dtype", "float32")
        folder = tmp_path_factory.mktemp("beset")
        pod = start_pod(folder, tiny_model, mlflow_server, running, *flags, overrides=overrides)
        pod.wait_ready()
        resident = registry.register(RESIDENT, tiny_adapter(1))
        registry.promote(resident)
        registry.promote(resident, "live")
        pod.wait_serving(RESIDENT, resident.version)
        yield Beset(pod, network, registry, resident)


@pytest.fixture
def fresh(registry: RegistryHand, tiny_adapter: SourceFactory, name: str) -> Registered:
    """A version that no pod has seen."""
    return registry.register(name, tiny_adapter(random.randrange(1_000, 1_000_000)))


@pytest.mark.parametrize("fault", [{"is_silent": True}, {"bytes_per_s": SLOW}], ids=["silent", "slow"])
def test_while_s3_is_slow_or_silent_what_serves_goes_on(beset: Beset, fresh: Registered, fault: dict[str, Any]) -> None:
    beset.network.disturb(**fault)
    num_asked = beset.network.num_asked
    with beset.unaffected():
        beset.registry.promote(fresh)
        beset.pod.wait_state(fresh.name, fresh.version, ServeState.LOADING)
        beset.pod.wait_for(lambda: beset.network.num_asked > num_asked or None, "S3 to be asked")
        refused = beset.pod.http.post("/v1/completions", json={"model": fresh.name, "prompt": "the cat"})
    assert refused.status_code == 409
    assert "loading" in refused.text
    beset.heal(fresh)


@pytest.mark.parametrize("fault", [{"resets": True}, {"break_after": [1_500] * 10_000}], ids=["resets", "breaks"])
def test_what_s3_breaks_off_is_told_and_tried_again(beset: Beset, fresh: Registered, fault: dict[str, Any]) -> None:
    beset.network.disturb(**fault)
    with beset.unaffected():
        beset.registry.promote(fresh)
        failed = beset.pod.wait_state(fresh.name, fresh.version, ServeState.FAILED)
    assert f"by-hand/{fresh.name}" in str(failed.error)
    beset.heal(fresh)


def test_an_artifact_that_is_not_there_is_told_by_name(beset: Beset, fresh: Registered) -> None:
    weights = beset.registry.download(f"{fresh.address}/{WEIGHTS}")
    beset.registry.delete(f"{fresh.address}/{WEIGHTS}")
    with beset.unaffected():
        beset.registry.promote(fresh)
        refused = beset.pod.wait_state(fresh.name, fresh.version, ServeState.REFUSED)
    assert f"{WEIGHTS} is missing" in str(refused.error)
    beset.registry.upload(f"{fresh.address}/{WEIGHTS}", weights)
    beset.heal(fresh)


def test_artifacts_that_the_pods_keys_may_not_read_are_told_with_the_remedy(
    beset: Beset, tiny_adapter: SourceFactory, name: str
) -> None:
    elsewhere = beset.registry.register(name, tiny_adapter(2), f"s3://{FORBIDDEN_BUCKET}/by-hand/{name}/1")
    with beset.unaffected():
        beset.registry.promote(elsewhere)
        failed = beset.pod.wait_state(name, elsewhere.version, ServeState.FAILED)
    assert "AWS_ACCESS_KEY_ID" in str(failed.error)
    beset.check_conserved()


@pytest.mark.parametrize("process", ["fetcher", "engine", "front"])
def test_a_process_killed_during_a_download_loses_nothing(beset: Beset, fresh: Registered, process: str) -> None:
    pod, network = beset.pod, beset.network
    network.disturb(bytes_per_s=SLOW)
    beset.registry.promote(fresh)
    pod.wait_for(lambda: _part_of_a_download(pod.cache), "a part of the weights")
    killed = _pids(pod)[process]
    os.kill(killed, signal.SIGKILL)
    network.heal()
    _wait_replaced(pod, process, killed)
    pod.wait_serving(RESIDENT, beset.resident.version)
    beset.heal(fresh)
    with beset.unaffected():
        pass


@pytest.mark.parametrize("process", ["fetcher", "engine", "front"])
def test_a_process_killed_at_any_moment_of_a_promotion_loses_nothing(
    beset: Beset, fresh: Registered, process: str
) -> None:
    pod = beset.pod
    killed = _pids(pod)[process]
    moment = threading.Timer(random.uniform(0.0, 0.4), os.kill, (killed, signal.SIGKILL))
    moment.start()
    beset.registry.promote(fresh)
    with suppress(PodUnreachable):  # It may be the front that is gone.
        pod.client.nudge(fresh.name, WEBHOOK_SECRET)
    moment.join()
    _wait_replaced(pod, process, killed)
    beset.heal(fresh)
    with beset.unaffected():
        pass


@pytest.mark.parametrize("skew_s", [-400, 400])
def test_what_a_skewed_clock_has_signed_is_refused_and_polling_serves_all_the_same(
    beset: Beset, fresh: Registered, skew_s: int
) -> None:
    beset.registry.promote(fresh)
    body = json.dumps({"data": {"name": fresh.name}}).encode()
    delivery, timestamp = uuid.uuid4().hex, str(int(time.time()) + skew_s)
    headers = {DELIVERY_HEADER: delivery, TIMESTAMP_HEADER: timestamp}
    headers[SIGNATURE_HEADER] = webhook_signature(body, delivery, timestamp, WEBHOOK_SECRET)
    answer = beset.pod.http.post("/v1/registry/webhook", content=body, headers=headers)
    assert answer.status_code == 401
    assert "check the clocks" in answer.text
    beset.pod.wait_serving(fresh.name, fresh.version)
    beset.check_conserved()


def test_a_disk_that_is_full_is_told_and_taken_again_once_it_is_not(
    tiny_model: Path,
    tiny_adapter: SourceFactory,
    mlflow_server: RunningMLflow,
    registry: RegistryHand,
    fresh: Registered,
    tmp_path: Path,
) -> None:
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    folder = tmp_path / "pod"
    cache = folder / "cache"
    cache.mkdir(parents=True)
    within = ("unshare", "-rm", "sh", "-c", _MOUNT, str(cache))
    with ExitStack() as running:
        pod = start_pod(folder, tiny_model, mlflow_server, running, "--poll-interval", "0.5", within=within)
        pod.wait_ready()
        disk = Path(f"/proc/{pod.pid}/root{cache}")
        ballast = disk / "ballast"
        free = os.statvfs(disk)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        registry.promote(fresh)
        failed = pod.wait_state(fresh.name, fresh.version, ServeState.FAILED)
        assert "No space left on device" in str(failed.error)
        assert "free disk space" in str(failed.error)
        ballast.unlink()
        pod.wait_serving(fresh.name, fresh.version)
        assert pod.client.complete(fresh.name, "the cat", max_tokens=2).digest == fresh.digest


def _pids(pod: PodProcess) -> dict[str, int]:
    return {**pod.child_pids(), "front": pod.pid}


def _wait_replaced(pod: PodProcess, process: str, killed: int) -> None:
    """Wait until there is another in the place of a process that was killed, and the pod is whole."""
    if process == "front":
        pod.wait_exit()
        pod.start()
    pod.wait_for(lambda: _pids(pod)[process] != killed or None, f"another {process}")
    pod.wait_ready()


def _part_of_a_download(cache: Path) -> bool | None:
    """Whether weights are under way."""
    return any((cache / "staging").rglob("*.safetensors")) or None
