"""MLflow's own deliveries reach a pod that polls far too rarely to have seen anything by itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookEvent
from mlflow.webhooks.types import EVENT_TO_PAYLOAD_CLASS

from lorafleet_contract.tags import Tag
from lorafleet_contract.webhook import (
    DELIVERY_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    WEBHOOK_PATH,
    webhook_signature,
)
from lorafleet_pipeline.registry.webhooks import Webhooks, WebhookState
from lorafleet_pipeline.settings import PlatformSettings
from tests.conftest import MLflowFactory
from tests.http_server import Server, running
from tests.services import RunningMLflow
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.pod_process import WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import RegistryHand
from tests.waiting import wait_for

_NEVER_S = "3600"


@dataclass(frozen=True)
class Delivery:
    """One that MLflow made, and what the pod answered."""

    headers: dict[str, str]
    body: bytes
    status: int
    answer: dict[str, Any]

    @property
    def event(self) -> str:
        told = json.loads(self.body)
        return f"{told['entity']}.{told['action']}"


@dataclass
class Relay:
    """Hands on to a pod what MLflow delivers, and keeps a copy."""

    pod: PodProcess
    url: str = ""
    taken: list[Delivery] = field(default_factory=list)

    def about(self, name: str) -> dict[str, Delivery]:
        """The last delivery of each event about a model."""
        return {item.event: item for item in self.taken if json.loads(item.body)["data"].get("name") == name}

    @contextmanager
    def running(self) -> Iterator[Relay]:
        server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        with running(server):
            yield self

    def _handler(relay) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name: self.headers[name] for name in (DELIVERY_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER)}
                answer = httpx.post(relay.pod.url + self.path, content=body, headers=headers, trust_env=False)
                relay.taken.append(Delivery(headers, body, answer.status_code, answer.json()))
                self.send_response(answer.status_code)
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, format: str, *args: Any) -> None:
                """Keep quiet."""

        return Handler


@dataclass(frozen=True)
class Managed:
    """An MLflow without our app, whose webhooks go to a pod, straight and through a relay."""

    mlflow: MlflowClient
    registry: RegistryHand
    pod: PodProcess
    relay: Relay
    webhooks: Webhooks


@pytest.fixture(scope="module")
def server(mlflow_factory: MLflowFactory) -> RunningMLflow:
    environment = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    return mlflow_factory(environment=environment)


@pytest.fixture(scope="module")
def managed(server: RunningMLflow, pod_factory: PodFactory) -> Iterator[Managed]:
    pod = pod_factory("--poll-interval", _NEVER_S, on=server)
    pod.wait_ready()
    with Relay(pod).running() as relay:
        pods = (pod.url, relay.url)
        settings = PlatformSettings(
            home=Path(), work_dir=Path(), mlflow_url=server.url, pods=pods, webhook_secret=WEBHOOK_SECRET
        )
        webhooks = Webhooks(settings)
        assert [item.state for item in webhooks.set()] == [WebhookState.CREATED] * 2
        yield Managed(MlflowClient(server.url), RegistryHand(server), pod, relay, webhooks)


def test_an_alias_moved_with_mlflow_is_served_by_its_own_delivery(
    managed: Managed, tiny_adapter: SourceFactory, name: str
) -> None:
    made = [managed.registry.register(name, tiny_adapter(seed)) for seed in (1, 2)]
    # The first may be seen by the delivery of a version that was made; there is none of the others but for the alias.
    for registered in (*made, made[0]):
        managed.mlflow.set_registered_model_alias(name, "champion", str(registered.version))
        managed.pod.wait_serving(name, registered.version)
        assert managed.pod.client.complete(name, "the cat", max_tokens=2).version == registered.version
    managed.mlflow.delete_registered_model_alias(name, "champion")

    def is_gone() -> bool:
        adapter = managed.pod.adapter(name)
        return adapter is None or adapter.serving is None

    wait_for(is_gone, "the name to be gone with its alias")


def test_every_event_of_an_adapter_is_taken_and_what_serving_writes_is_no_reason_to_look(
    managed: Managed, tiny_adapter: SourceFactory, name: str
) -> None:
    managed.registry.register(name, tiny_adapter(1))
    mlflow = managed.mlflow

    def about() -> dict[str, Delivery]:
        return managed.relay.about(name)

    mlflow.set_model_version_tag(name, "1", "gate.note", "ours")
    mlflow.delete_model_version_tag(name, "1", "gate.note")
    mlflow.set_registered_model_alias(name, "champion", "1")
    mlflow.delete_registered_model_alias(name, "champion")
    events = {
        "model_version.created",
        "model_version_tag.set",
        "model_version_tag.deleted",
        "model_version_alias.created",
        "model_version_alias.deleted",
    }
    wait_for(lambda: about().keys() == events, "a delivery of each event")
    assert {item.answer["status"] for item in about().values()} == {"accepted"}
    mlflow.set_model_version_tag(name, "1", Tag.SERVE_STATE.value, "ready")
    wait_for(lambda: about()["model_version_tag.set"].answer["status"] == "ignored", "the tag of serving ignored")
    assert {item.status for item in about().values()} == {200}


def test_a_delivery_of_mlflow_counts_once_and_neither_changed_nor_late(
    managed: Managed, tiny_adapter: SourceFactory, name: str
) -> None:
    managed.registry.register(name, tiny_adapter(1))
    real = wait_for(lambda: managed.relay.about(name).get("model_version.created"), "MLflow's delivery")

    def send(changed: Mapping[str, str], body: bytes = real.body) -> httpx.Response:
        return managed.pod.http.post(WEBHOOK_PATH, content=body, headers={**real.headers, **changed})

    assert send({}).json() == {"status": "seen before"}
    assert send({}, real.body.replace(name.encode(), b"another")).status_code == 401
    assert send({DELIVERY_HEADER: "another"}).status_code == 401
    assert send({TIMESTAMP_HEADER: str(int(real.headers[TIMESTAMP_HEADER]) + 1)}).status_code == 401
    delivery, late = real.headers[DELIVERY_HEADER], str(int(time.time()) - 301)
    signature = webhook_signature(real.body, delivery, late, WEBHOOK_SECRET)
    refused = send({TIMESTAMP_HEADER: late, SIGNATURE_HEADER: signature})
    assert refused.status_code == 401
    assert "check the clocks" in refused.text


def test_mlflow_finds_every_event_that_it_knows_answered_when_it_tests_a_webhook(managed: Managed) -> None:
    events = [WebhookEvent(entity, action) for entity, action in EVENT_TO_PAYLOAD_CLASS]
    url = managed.pod.url + WEBHOOK_PATH
    webhook = managed.mlflow.create_webhook("of-somebody", url, events, secret=WEBHOOK_SECRET)
    results = {str(event): managed.mlflow.test_webhook(webhook.webhook_id, event) for event in events}
    assert {event: item.response_status for event, item in results.items() if not item.success} == {}
    statuses = {event.partition(".")[0]: json.loads(item.response_body)["status"] for event, item in results.items()}
    assert {entity for entity, status in statuses.items() if status == "accepted"} == {
        "registered_model",
        "model_version",
        "model_version_tag",
        "model_version_alias",
    }
    assert set(statuses.values()) == {"accepted", "ignored"}
    managed.mlflow.delete_webhook(webhook.webhook_id)


def test_the_webhooks_are_tested_through_mlflow(managed: Managed) -> None:
    tested = managed.webhooks.tested()
    assert [item.is_answered for item in tested] == [True, True]
    assert all(item.answer is not None and item.answer.startswith("200: ") for item in tested)


def test_a_storm_of_deliveries_about_one_name_keeps_no_other_waiting(
    managed: Managed, tiny_adapter: SourceFactory, name: str
) -> None:
    version = managed.registry.register(f"{name}-calm", tiny_adapter(3)).version
    ends = threading.Event()

    def storm() -> None:
        while not ends.is_set():
            managed.pod.client.nudge(name, WEBHOOK_SECRET)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        managed.mlflow.set_registered_model_alias(f"{name}-calm", "champion", str(version))
        managed.pod.wait_serving(f"{name}-calm", version)
    finally:
        ends.set()
        thread.join()
