"""What the controller tells and asks pods is bounded, for each pod and for all together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from lorafleet_contract.fleet import PodReport
from lorafleet_pipeline.registry.pods import _MAX_ASKS_PER_S, Pods
from lorafleet_pipeline.settings import PlatformSettings
from tests.http_server import Server, running
from tests.pipeline.registry.fake_pod import ADMIN_TOKEN, WEBHOOK_SECRET, FakePod
from tests.pipeline.registry.fleet import eventually

NAMES = [f"adapter-{number}" for number in range(60)]


@contextmanager
def _pods(*urls: str) -> Iterator[Pods]:
    settings = PlatformSettings(
        Path(), Path(), "http://nowhere", pods=urls, admin_token=ADMIN_TOKEN, webhook_secret=WEBHOOK_SECRET
    )
    pods = Pods(settings, lambda names: None)
    try:
        yield pods
    finally:
        pods.stop()


class _SlowPod:
    """Answers deliveries once it may."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.num_asked = self.num_open = self.most_open = 0
        self._lock = threading.Lock()
        self._server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[None]:
        with running(self._server):
            try:
                yield
            finally:
                self.may_answer.set()

    def _note(self, difference: int) -> None:
        with self._lock:
            self.num_open += difference
            self.num_asked += difference > 0
            self.most_open = max(self.most_open, self.num_open)

    def _handler(pod) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                pod._note(1)
                pod.may_answer.wait(60)
                pod._note(-1)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                """Keep quiet."""

        return Handler


def test_a_pod_that_hangs_keeps_no_other_waiting_and_is_told_one_thing_at_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hanging, healthy = _SlowPod(), FakePod()
    with hanging.running(), healthy.running(), _pods(hanging.url, healthy.url) as pods:
        for name in NAMES:
            pods.nudge(name)
        eventually(lambda: len(healthy.nudges) == len(NAMES), "all names told to the healthy pod")
        assert [name for name, _ in healthy.nudges] == NAMES
        # Who did not answer for two seconds is not asked for all the others.
        eventually(lambda: f"{len(NAMES) - 1} others could not be told" in caplog.text, "the rest given up")
        assert (hanging.num_asked, hanging.most_open) == (1, 1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_name_that_is_told_again_and_again_while_a_pod_is_busy_is_told_once_more() -> None:
    busy = _SlowPod()
    with busy.running(), _pods(busy.url) as pods:
        pods.nudge("adapter")
        eventually(lambda: busy.num_asked == 1, "the first word")
        for _ in range(1000):
            pods.nudge("adapter")
        busy.may_answer.set()
        pods.nudge("last")
        eventually(lambda: busy.num_asked == 3, "the second word, and the last")
    assert (busy.num_asked, busy.most_open) == (3, 1)


def test_nothing_is_told_after_the_end() -> None:
    pod = FakePod()
    with pod.running():
        with _pods(pod.url) as pods:
            pods.nudge("before")
            eventually(lambda: len(pod.nudges) == 1, "the word before")
        pods.nudge("after")
    assert [name for name, _ in pod.nudges] == ["before"]


def test_fifty_pods_that_are_nudged_all_the_time_are_asked_no_oftener_than_the_controller_may() -> None:
    class Counted(FakePod):
        num_reports = 0

        def report(self) -> PodReport:
            self.num_reports += 1
            return super().report()

    pod = Counted()
    with pod.running(), _pods(*[pod.url] * 50) as pods:
        pods.start()
        eventually(lambda: pod.num_reports >= 50, "each asked once")
        began, before, pace = time.monotonic(), pod.num_reports, threading.Event()
        while time.monotonic() < began + 1.0:
            pods.nudge("adapter")
            pace.wait(0.05)
        asked, took_s = pod.num_reports - before, time.monotonic() - began
    assert 0 < asked <= _MAX_ASKS_PER_S * took_s + 50
