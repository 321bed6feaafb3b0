"""Bad challengers under load, with the controller: few users meet them, and the registry's canary ends."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

import httpx
import pytest

from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.controller import run
from tests.pipeline.registry.fleet import eventually, in_background, settings_of
from tests.services import RunningMLflow
from tests.serving.canaries import begin, broken_at, canary_of, saying
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.pod_process import ADMIN_TOKEN, WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import AdapterSource, RegistryHand

pytestmark = pytest.mark.faults

NUM_CALLERS = 8
NUM_USERS = 400
SHARE = 0.1
WINDOW_S = 60.0
ANSWERS_S = 280.0
"""How long answers may take to come on a slow machine before something hangs."""
PROMPT = "a # b"


@pytest.fixture(scope="module")
def watched(
    pod_factory: PodFactory, mlflow_server: RunningMLflow, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PodProcess]:
    """A pod that a controller watches."""
    pod = pod_factory("--canary-window", str(WINDOW_S), "--dtype", "float32")
    pod.wait_ready()
    home = tmp_path_factory.mktemp("controller")
    settings = settings_of(mlflow_server.s3, home, mlflow_server.url, (pod.url,))
    settings = replace(settings, admin_token=ADMIN_TOKEN, webhook_secret=WEBHOOK_SECRET)
    with in_background(partial(run, settings, interval_s=0.2)):
        yield pod


@dataclass
class Traffic:
    """Users who ask again and again, and which versions answered each."""

    url: str
    model: str
    answered: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    statuses: list[int] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask until the block ends."""
        done = threading.Event()
        with ThreadPoolExecutor(NUM_CALLERS) as callers:
            asking = [callers.submit(self._ask_on, done) for _ in range(NUM_CALLERS)]
            try:
                yield
            finally:
                done.set()
            for one in asking:
                one.result()

    def users_of(self, label: str) -> set[str]:
        return {user for user, labels in list(self.answered.items()) if label in labels}

    def _ask_on(self, done: threading.Event) -> None:
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as http:
            while not done.is_set():
                user = f"user-{next(self.numbers) % NUM_USERS}"
                body = {"model": self.model, "prompt": PROMPT, "max_tokens": 50, "temperature": 0.5, "user": user}
                answer = http.post("/v1/completions", json=body)
                self.statuses.append(answer.status_code)
                if (label := answer.headers.get("x-lorafleet-adapter")) is not None:
                    self.answered[user].add(label)


@pytest.mark.parametrize(
    ("make", "told"), [(partial(broken_at, "#"), "not finite"), (partial(saying, "x"), "repeating themselves")]
)
def test_a_bad_challenger_is_ended_everywhere_and_meets_no_more_than_its_share(
    watched: PodProcess,
    registry: RegistryHand,
    tiny_model: Path,
    tiny_adapter: SourceFactory,
    tmp_path: Path,
    name: str,
    make: Callable[[Path, Path], AdapterSource],
    told: str,
) -> None:
    bad = make(tiny_model, tmp_path / "bad")
    champion, challenger = begin(watched, registry, name, (tiny_adapter(31), bad), str(SHARE))
    traffic = Traffic(watched.url, name)
    tags = registry.client.get_model
    began = time.monotonic()
    with traffic.running():
        eventually(lambda: tags(name).tags[Tag.ROLLOUT_CANARY] == "0", "the end of the canary", WINDOW_S)
        took_s = time.monotonic() - began
        watched.wait_for(lambda: canary_of(watched, name) is None or None, "the pod's end of it")
        num_failed = len([status for status in traffic.statuses if status != 200])
        so_far = len(traffic.statuses)
        eventually(lambda: len(traffic.statuses) > so_far + 10 * NUM_CALLERS, "more answers")
        assert {*traffic.statuses[so_far + NUM_CALLERS :]} == {200}
    assert took_s < WINDOW_S
    assert told in tags(name).tags[Tag.ROLLOUT_STOPPED]
    assert f"version {challenger.version}" in tags(name).tags[Tag.ROLLOUT_STOPPED]
    touched = len(traffic.users_of(challenger.label)) + num_failed
    assert touched <= SHARE * NUM_USERS + 4 * (NUM_USERS * SHARE * (1 - SHARE)) ** 0.5
    assert traffic.users_of(champion.label)


@pytest.mark.parametrize("num_answers", [500, pytest.param(2000, marks=pytest.mark.soak)])
def test_a_good_challenger_keeps_its_share(
    watched: PodProcess,
    registry: RegistryHand,
    tiny_adapter: SourceFactory,
    name: str,
    num_answers: int,
) -> None:
    _, challenger = begin(watched, registry, name, (tiny_adapter(31), tiny_adapter(32)), str(SHARE))
    traffic = Traffic(watched.url, name)
    with traffic.running():
        eventually(lambda: len(traffic.statuses) >= num_answers, f"{num_answers} answers", ANSWERS_S)
    assert {*traffic.statuses} == {200}
    canary = canary_of(watched, name)
    assert canary is not None
    assert canary.stopped is None
    assert registry.client.get_model(name).tags[Tag.ROLLOUT_CANARY] == str(SHARE)
    users = len(traffic.users_of(challenger.label))
    assert users == pytest.approx(SHARE * NUM_USERS, abs=4 * (NUM_USERS * SHARE * (1 - SHARE)) ** 0.5)
    # Nobody met both.
    assert all(len(labels) == 1 for labels in traffic.answered.values())
