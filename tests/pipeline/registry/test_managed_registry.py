"""The controller beside a registry of somebody else's: away at first, and asked with credentials."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from lorafleet_contract.exceptions import RegistryError
from lorafleet_pipeline.registry.controller import Controller
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.stack.ports import free_port
from tests.pipeline.registry.fleet import eventually, in_background


@contextmanager
def _looking(controller: Controller) -> Iterator[Controller]:
    with in_background(controller.run):
        yield controller


def test_registry_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    settings = PlatformSettings(home=tmp_path, work_dir=tmp_path, mlflow_url=f"http://127.0.0.1:{port}")
    with _looking(Controller(settings, interval_s=0.05, announced=False)) as controller:
        eventually(lambda: controller._away_since is not None, "a look at the registry that is away")
        with _GuardedRegistry(None, port) as registry:
            eventually(lambda: registry.num_answered > 0, "a look at the registry that came")


def test_managed_registry_is_asked_with_the_credentials_of_the_settings(tmp_path: Path) -> None:
    with _GuardedRegistry("Bearer t0ken") as registry:
        settings = PlatformSettings(home=tmp_path, work_dir=tmp_path, mlflow_url=registry.url, mlflow_token="t0ken")
        controller = Controller(settings, interval_s=1.0, announced=False)
        assert controller.run_once() == 0
        controller.close()
        assert registry.num_refused == 0
        assert settings.registry().search_models() == []
        with pytest.raises(RegistryError, match=r"401.*MLFLOW_TRACKING_TOKEN"):
            replace(settings, mlflow_token=None).registry().search_models()


def test_wrong_credentials_are_told_once_and_waited_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with _GuardedRegistry("Bearer t0ken") as registry:
        settings = PlatformSettings(home=tmp_path, work_dir=tmp_path, mlflow_url=registry.url, mlflow_token="wrong")
        controller = Controller(settings, interval_s=0.05, announced=False)
        controller._away_since = time.monotonic() - 60
        with _looking(controller):
            eventually(lambda: registry.num_refused > 3, "several looks")
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "the controller waits" in told[0].getMessage()
    assert told[0].exc_info is None


class _GuardedRegistry(ThreadingHTTPServer):
    """An empty registry that answers to one authorization alone."""

    def __init__(self, authorization: str | None, port: int = 0) -> None:
        registry = self
        self.num_refused = self.num_answered = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_known = self.headers.get("Authorization") == authorization
                registry.num_refused += not is_known
                registry.num_answered += is_known
                self.send_response(200 if is_known else 401)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                """Keep quiet."""

        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
