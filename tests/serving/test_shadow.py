"""Shadows in a running pod: asked what the champion was asked, seen by nobody, and in nobody's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from lorafleet_contract.fleet import ShadowReport
from lorafleet_contract.states import ServeState
from tests.serving.canaries import broken_at
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.pod_process import WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import AdapterSource, Registered, RegistryHand


def shadow_of(pod: PodProcess, name: str) -> ShadowReport | None:
    adapter = pod.adapter(name)
    return None if adapter is None else adapter.shadow


def begin(
    pod: PodProcess, registry: RegistryHand, name: str, sources: tuple[AdapterSource, AdapterSource]
) -> tuple[Registered, Registered]:
    """A champion that serves, and a shadow that is ready."""
    champion, shadow = (registry.register(name, source) for source in sources)
    registry.promote(champion)
    registry.promote(shadow, "shadow")
    pod.client.nudge(name, WEBHOOK_SECRET)
    pod.wait_serving(name, champion.version)
    pod.wait_state(name, shadow.version, ServeState.READY)
    pod.wait_for(lambda: shadow_of(pod, name), "the shadow")
    return champion, shadow


def ask(pod: PodProcess, model: str, **fields: object) -> httpx.Response:
    body = {"model": model, "prompt": "the cat", "max_tokens": 4, **fields}
    return pod.http.post("/v1/completions", json=body)


def wait_mirrored(pod: PodProcess, name: str, number: int) -> ShadowReport:
    def look() -> ShadowReport | None:
        shadow = shadow_of(pod, name)
        return shadow if shadow is not None and shadow.num_answers + shadow.num_skipped >= number else None

    return pod.wait_for(look, f"{number} requests to be mirrored")


def test_what_the_champion_answers_is_asked_of_the_shadow_too(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    champion, shadow = begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(32)))
    answers = [ask(pod, name, max_tokens=16) for _ in range(4)]
    answers += [ask(pod, name, stream=True), ask(pod, name, n=2, temperature=1.0)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-lorafleet-adapter"] for answer in answers} == {champion.label}
    seen = wait_mirrored(pod, name, 7)
    assert (seen.version, seen.num_answers, seen.num_skipped, seen.doubt) == (shadow.version, 7, 0, None)
    assert seen.num_same < 7
    assert pod.metric("lorafleet_shadow_answers") >= 7
    assert ask(pod, f"{name}@shadow").status_code == 403


def test_the_same_weights_answer_alike(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(31)))
    for number in range(4):
        ask(pod, name, prompt="the cat" * (number + 1), max_tokens=8)
    seen = wait_mirrored(pod, name, 4)
    assert (seen.num_answers, seen.num_same) == (4, 4)


def test_only_answers_to_the_bare_name_are_mirrored(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(32)))
    ask(pod, f"{name}@champion")
    pod.http.post("/v1/embeddings", json={"model": name, "input": "the cat"})
    ask(pod, name, max_tokens=0, echo=True)
    ask(pod, name)
    assert wait_mirrored(pod, name, 1).num_answers == 1


def test_a_shadow_that_breaks_is_told_and_nobody_else_notices(
    pod: PodProcess, registry: RegistryHand, tiny_model: Path, tiny_adapter: SourceFactory, tmp_path: Path, name: str
) -> None:
    broken = broken_at("#", tiny_model, tmp_path / "broken")
    champion, _ = begin(pod, registry, name, (tiny_adapter(31), broken))
    for number in range(1, 31):
        answer = ask(pod, name, prompt="a #", max_tokens=2)
        assert (answer.status_code, answer.headers["x-lorafleet-adapter"]) == (200, champion.label)
        seen = wait_mirrored(pod, name, number)
    assert seen.num_answers == 30
    assert "not finite" in str(seen.doubt)


def test_another_champion_is_compared_anew(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    _, shadow = begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(32)))
    ask(pod, name)
    wait_mirrored(pod, name, 1)
    other = registry.register(name, tiny_adapter(33))
    registry.promote(other)
    pod.client.nudge(name, WEBHOOK_SECRET)
    pod.wait_serving(name, other.version)
    seen = shadow_of(pod, name)
    assert seen is not None
    assert (seen.version, seen.num_answers) == (shadow.version, 0)
    registry.promote(shadow)
    pod.client.nudge(name, WEBHOOK_SECRET)
    pod.wait_serving(name, shadow.version)
    assert shadow_of(pod, name) is None


@contextmanager
def crowd(pod: PodProcess, num_clients: int) -> Iterator[None]:
    """Clients that keep the base model busy."""
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            assert ask(pod, "", max_tokens=100, ignore_eos=True).status_code == 200

    with ThreadPoolExecutor(num_clients) as clients:
        running = [clients.submit(client) for _ in range(num_clients)]
        try:
            yield
        finally:
            over.set()
        for future in running:
            future.result()


def test_nobody_waits_behind_a_shadow(
    pod_factory: PodFactory, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    pod = pod_factory("--max-num-seqs", "2")
    pod.wait_ready()
    begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(32)))
    with crowd(pod, num_clients=8):
        pod.wait_for(lambda: pod.metric("vllm:num_requests_waiting") >= 4 or None, "a queue")
        for _ in range(40):
            assert ask(pod, name).status_code == 200
        seen = shadow_of(pod, name)
        assert seen is not None
        # Of those that find no time the newest are kept, and the rest is told.
        assert (seen.num_answers, seen.num_skipped) == (0, 8)
    assert wait_mirrored(pod, name, 40).num_answers == 32
