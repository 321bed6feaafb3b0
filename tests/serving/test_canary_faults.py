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
from tests.serving.registered_adapter import AdapterSource, Registered, RegistryHand
from tests.serving.tiny_model import make_tiny_adapter, make_tiny_model

pytestmark = pytest.mark.faults

NUM_CALLERS = 8
NUM_USERS = 400
SHARE = 0.1
WINDOW_S = 60.0
ANSWERS_S = 280.0
"""How long answers may take to come on a slow machine before something hangs."""
PROMPT = "a # b"
WIDE = {
    "hidden_size": 512,
    "intermediate_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
"""Shape of a model whose largest adapters have more weights than its own layers."""
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def watched(
    pod_factory: PodFactory, mlflow_server: RunningMLflow, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PodProcess]:
    """A pod that a controller watches."""
    pod = pod_factory("--canary-window", str(WINDOW_S), "--dtype", "float32")
    with controlled(pod, mlflow_server, tmp_path_factory.mktemp("controller")):
        yield pod


@contextmanager
def controlled(pod: PodProcess, mlflow: RunningMLflow, home: Path) -> Iterator[None]:
    pod.wait_ready()
    settings = settings_of(mlflow.s3, home, mlflow.url, (pod.url,))
    settings = replace(settings, admin_token=ADMIN_TOKEN, webhook_secret=WEBHOOK_SECRET)
    with in_background(partial(run, settings, interval_s=0.2)):
        yield


@dataclass
class Traffic:
    """Users who ask again and again, and which versions answered each."""

    url: str
    model: str
    share: float = SHARE
    num_callers: int = NUM_CALLERS
    max_tokens: int = 50
    answered: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    statuses: list[int] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask until the block ends."""
        done = threading.Event()
        with ThreadPoolExecutor(self.num_callers) as callers:
            asking = [callers.submit(self._ask_on, done) for _ in range(self.num_callers)]
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
                body = {
                    "model": self.model,
                    "prompt": PROMPT,
                    "max_tokens": self.max_tokens,
                    "temperature": 0.5,
                    "user": user,
                }
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
    _expect_its_end(watched, registry, champion, challenger, told, Traffic(watched.url, name))


def test_a_challenger_that_is_slow_is_ended(
    pod_factory: PodFactory, registry: RegistryHand, mlflow_server: RunningMLflow, tmp_path: Path, name: str
) -> None:
    model = make_tiny_model(tmp_path / "wide", shape=WIDE)
    folders = [make_tiny_adapter(model, tmp_path / f"rank-{rank}", 1, rank, ALL_LINEAR) for rank in (4, 256)]
    light, heavy = (AdapterSource(model, folder, rank=rank) for folder, rank in zip(folders, (4, 256), strict=True))
    flags = ("--canary-window", str(WINDOW_S), "--dtype", "float32", "--max-rank", "256")
    pod = pod_factory(*flags, model=model)
    with controlled(pod, mlflow_server, tmp_path / "controller"):
        # One after the other: what is computed in one batch with a slow answer is as slow.
        traffic = Traffic(pod.url, name, share=0.3, num_callers=1, max_tokens=12)
        champion, challenger = begin(pod, registry, name, (light, heavy), str(traffic.share))
        _expect_its_end(pod, registry, champion, challenger, "s per token", traffic)


def _expect_its_end(
    pod: PodProcess,
    registry: RegistryHand,
    champion: Registered,
    challenger: Registered,
    told: str,
    traffic: Traffic,
) -> None:
    """The canary ends in registry and pod within the window, says why, and met no more than its share of users."""
    name, tags = champion.name, registry.client.get_model
    began = time.monotonic()
    with traffic.running():
        eventually(lambda: tags(name).tags[Tag.ROLLOUT_CANARY] == "0", "the end of the canary", WINDOW_S)
        took_s = time.monotonic() - began
        pod.wait_for(lambda: canary_of(pod, name) is None or None, "the pod's end of it")
        num_failed = len([status for status in traffic.statuses if status != 200])
        so_far = len(traffic.statuses)
        eventually(lambda: len(traffic.statuses) > so_far + 10 * traffic.num_callers, "more answers")
        assert {*traffic.statuses[so_far + traffic.num_callers :]} == {200}
    assert took_s < WINDOW_S
    assert told in tags(name).tags[Tag.ROLLOUT_STOPPED]
    assert f"version {challenger.version}" in tags(name).tags[Tag.ROLLOUT_STOPPED]
    touched = len(traffic.users_of(challenger.label)) + num_failed
    assert touched <= traffic.share * NUM_USERS + 4 * (NUM_USERS * traffic.share * (1 - traffic.share)) ** 0.5
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
