"""A pod as the controller sees it: reports and nudges over HTTP, and a registry that it follows by alias.

It loads nothing. Tests say which versions it refuses, cannot read or keeps loading.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.exceptions import RegistryError
from lorafleet_contract.fleet import AdapterReport, CanaryReport, PodReport, VersionReport
from lorafleet_contract.registry import ModelVersion, RegistryClient, RegistryEndpoint
from lorafleet_contract.states import ServeState
from lorafleet_contract.tags import Tag
from lorafleet_contract.webhook import DELIVERY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, webhook_signature
from tests.http_server import Server, running

ADMIN_TOKEN = "admin-token"
WEBHOOK_SECRET = "webhook-secret"
BASE_DIGEST = "sha256:" + "b" * 64


class FakePod:
    """One pod. `refusals`, `unreadable` and `loading` are keyed by name and version, `canaries` by name."""

    def __init__(self, base_digest: str = BASE_DIGEST) -> None:
        self.base_digest = base_digest
        self.refusals: dict[tuple[str, int], str] = {}
        self.unreadable: dict[tuple[str, int], str] = {}
        self.loading: set[tuple[str, int]] = set()
        self.canaries: dict[str, CanaryReport] = {}
        self.registry_error: str | None = None
        self.nudges: list[tuple[str, float]] = []
        self.registry: RegistryClient | None = None
        self._adapters: dict[str, AdapterReport] = {}
        self._synced_at: float | None = None
        self._lock = threading.Lock()
        self._server = Server(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[FakePod]:
        with running(self._server):
            yield self

    def follow(self, url: str) -> None:
        """Follow this registry from now on."""
        self.registry = RegistryClient(RegistryEndpoint(url))

    def sync(self, name: str) -> None:
        """Look at one adapter in the registry."""
        if self.registry is None:
            return
        with self._lock:
            try:
                model, versions = self.registry.get_model(name), self.registry.search_versions(name)
            except RegistryError:
                self._adapters.pop(name, None)
                return
            held = {item.version: item for item in versions if item.tags.get(Tag.LORA_BASE_DIGEST) == self.base_digest}
            if held:
                self._adapters[name] = self._report(name, dict(model.aliases), held)
            self._synced_at = time.time()

    def report(self) -> PodReport:
        with self._lock:
            adapters = tuple(self._adapters.values())
            return PodReport(
                "fake-pod", "fake-base", self.base_digest, adapters, self.registry_error, synced_at=self._synced_at
            )

    def _report(self, name: str, aliases: dict[str, int], held: dict[int, ModelVersion]) -> AdapterReport:
        versions: dict[int, VersionReport] = {}
        for alias in Alias:
            item = held.get(aliases.get(alias, 0))
            if item is not None and item.stage is not Stage.ARCHIVED:
                state, error = self._state(name, item.version)
                digest = item.tags[Tag.LORA_DIGEST]
                versions[item.version] = VersionReport(item.version, digest, state, (alias.value,), error)
        wanted = (aliases.get(Alias.CHAMPION, 0), aliases.get(Alias.LIVE, 0))
        ready = [number for number in wanted if number in versions and versions[number].state is ServeState.READY]
        return AdapterReport(name, ready[0] if ready else None, tuple(versions.values()), self.canaries.get(name))

    def _state(self, name: str, version: int) -> tuple[ServeState, str | None]:
        if reason := self.refusals.get((name, version)):
            return ServeState.REFUSED, reason
        if reason := self.unreadable.get((name, version)):
            return ServeState.FAILED, reason
        return (ServeState.LOADING if (name, version) in self.loading else ServeState.READY), None

    def _handler(pod) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.headers.get("Authorization") != f"Bearer {ADMIN_TOKEN}":
                    self._answer(401, {"error": {"message": "no admin token"}})
                else:
                    self._answer(200, pod.report().to_json())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                delivery, timestamp = self.headers[DELIVERY_HEADER], self.headers[TIMESTAMP_HEADER]
                if self.headers[SIGNATURE_HEADER] != webhook_signature(body, delivery, timestamp, WEBHOOK_SECRET):
                    self._answer(401, {"error": {"message": "bad signature"}})
                    return
                name = json.loads(body)["data"]["name"]
                pod.nudges.append((name, time.time()))
                self._answer(200, {})
                pod.sync(name)

            def _answer(self, status: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Keep quiet."""

        return Handler
