"""Versions that are ready, and whose bytes are nowhere but in an S3 that is away: asked for, and had again."""

from __future__ import annotations

import shutil
from dataclasses import replace

import httpx
import pytest

from tests.conftest import S3Factory
from tests.services import RunningMLflow
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.network_proxy import NetworkProxy
from tests.serving.pod_process import ADMIN_TOKEN, WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import Registered, RegistryHand

pytestmark = pytest.mark.faults

NUM_REQUESTS = 60
CONNECTIONS_OF_A_TRY = 3
"""Tries of boto's own."""


def _ask(pod: PodProcess, name: str) -> httpx.Response:
    return pod.http.post("/v1/completions", json={"model": name, "prompt": "the cat", "max_tokens": 2})


def _lose(pod: PodProcess, registered: Registered) -> None:
    """Take an adapter out of memory and off the disk."""
    authorization = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    body = {"adapter": registered.name}
    pod.http.post("/v1/adapters/evict", json=body, headers=authorization).raise_for_status()
    shutil.rmtree(pod.cache / "adapters" / registered.digest.removeprefix("sha256:"))


def test_a_dead_s3_is_not_asked_by_each_request_and_a_nudge_has_the_adapter_at_once(
    pod_factory: PodFactory,
    s3_factory: S3Factory,
    mlflow_server: RunningMLflow,
    tiny_adapter: SourceFactory,
    name: str,
) -> None:
    own_s3 = s3_factory()
    # The session's registry, which itself never asks S3 for what is registered by hand.
    own_mlflow = replace(mlflow_server, s3=own_s3)
    registry = RegistryHand(own_mlflow)
    registered = registry.register(name, tiny_adapter(1))
    registry.promote(registered)
    with NetworkProxy(own_s3.endpoint) as proxy:
        pod = pod_factory("--s3-endpoint", proxy.url, "--refusal-recheck", "600", on=own_mlflow)
        pod.wait_serving(registered.name, 1)
        own_s3.component.stop()
        _lose(pod, registered)
        before = proxy.num_connections
        answers = [_ask(pod, registered.name) for _ in range(NUM_REQUESTS)]
        num_tries = (proxy.num_connections - before) / CONNECTIONS_OF_A_TRY
        assert {answer.status_code for answer in answers} == {503}
        assert all("cannot read s3://" in answer.text for answer in answers), answers[-1].text
        assert 1 <= num_tries <= 6, f"{NUM_REQUESTS} requests made {num_tries} tries"
        own_s3.component.start()
        own_s3.component.wait_ready()
        pod.client.nudge(registered.name, WEBHOOK_SECRET)
        pod.wait_for(lambda: _ask(pod, registered.name).is_success or None, "the adapter to be had again", 5.0)
    registry.unregister(registered)  # Other pods of the session do not find its files.
