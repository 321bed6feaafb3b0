"""Canaries in a running pod: who is answered by whom, and what ends it."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from lorafleet_contract.fleet import CanaryReport
from tests.serving.canaries import begin, broken_at, canary_of, saying, set_share
from tests.serving.conftest import SourceFactory
from tests.serving.pod_process import WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import RegistryHand

NUM_CALLERS = 8


def ask(pod: PodProcess, model: str, user: str | None, prompt: str = "the cat") -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": 4, **({} if user is None else {"user": user})}
    return pod.http.post("/v1/completions", json=body)


def answered_by(pod: PodProcess, model: str, users: list[str | None]) -> list[str]:
    """Label of the version that answers each user."""
    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        answers = list(callers.map(partial(ask, pod, model), users))
    assert {answer.status_code for answer in answers} == {200}
    return [answer.headers["x-lorafleet-adapter"] for answer in answers]


def test_a_challenger_answers_its_share_of_users_and_always_the_same(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    champion, challenger = begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(32)), "0.25")
    users: list[str | None] = [f"user-{number}" for number in range(240)]
    first = answered_by(pod, name, users)
    share = Counter(first)[challenger.label] / len(users)
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(users)) ** 0.5)
    assert answered_by(pod, name, users[:60]) == first[:60]
    by_header = pod.http.post(
        "/generate",
        json={"inputs": "the cat", "parameters": {"adapter_id": name, "max_new_tokens": 2}},
        headers={"x-lorafleet-user": "user-0"},
    )
    assert by_header.headers["x-lorafleet-adapter"] == first[0]
    nobody = Counter(answered_by(pod, name, [None] * 240))
    assert 20 <= nobody[challenger.label] <= 100
    assert set(answered_by(pod, f"{name}@champion", users[:40])) == {champion.label}
    assert set(answered_by(pod, f"{name}@challenger", users[:40])) == {challenger.label}


def test_a_share_that_is_changed_counts_at_once_and_none_ends_it(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    champion, challenger = begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(32)), "0.2")
    users: list[str | None] = [f"user-{number}" for number in range(40)]
    set_share(pod, registry, name, "1")
    pod.wait_for(lambda: ((found := canary_of(pod, name)) and found.share == 1.0) or None, "the whole share")
    assert set(answered_by(pod, name, users)) == {challenger.label}
    set_share(pod, registry, name, "0")
    pod.wait_for(lambda: canary_of(pod, name) is None or None, "the end of the canary")
    assert set(answered_by(pod, name, users)) == {champion.label}


def test_a_challenger_that_becomes_champion_is_no_canary_any_more(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    _, challenger = begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(32)), "0.2")
    registry.promote(challenger)
    pod.client.nudge(name, WEBHOOK_SECRET)
    pod.wait_serving(name, challenger.version)
    assert canary_of(pod, name) is None


def ask_until_stopped(
    pod: PodProcess, name: str, body: dict[str, object], most: int
) -> tuple[CanaryReport, Counter[str]]:
    """Ask on until the pod stops its canary; returns what it reports, and how many each version answered."""
    answered = Counter[str]()
    for number in range(most):
        answer = pod.http.post("/v1/completions", json={"model": name, "user": f"u{number}", **body})
        answered[answer.headers.get("x-lorafleet-adapter", f"status {answer.status_code}")] += 1
        canary = canary_of(pod, name)
        if canary is not None and canary.stopped is not None:
            return canary, answered
    raise AssertionError(f"the canary goes on after {most} requests: {canary}, {answered}")


def test_a_challenger_that_breaks_on_what_callers_send_is_stopped(
    pod: PodProcess, registry: RegistryHand, tiny_model: Path, tiny_adapter: SourceFactory, tmp_path: Path, name: str
) -> None:
    broken = broken_at("#", tiny_model, tmp_path / "broken")
    champion, challenger = begin(pod, registry, name, (tiny_adapter(31), broken), "0.2")
    canary, answered = ask_until_stopped(pod, name, {"prompt": "a #", "max_tokens": 2}, most=200)
    assert canary.version == challenger.version
    assert "not finite" in str(canary.stopped)
    assert canary.num_answers <= 8
    assert sum(answered.values()) - answered[champion.label] == canary.num_answers
    users: list[str | None] = [f"u{number}" for number in range(60)]
    assert set(answered_by(pod, name, users)) == {champion.label}
    # As soon as the controller has ended it, another may begin with the same version.
    set_share(pod, registry, name, "0")
    pod.wait_for(lambda: canary_of(pod, name) is None or None, "the end of the canary")
    set_share(pod, registry, name, "0.5")
    again = pod.wait_for(lambda: canary_of(pod, name), "another canary")
    assert (again.stopped, again.num_answers) == (None, 0)


def test_a_challenger_that_repeats_itself_is_stopped(
    pod: PodProcess, registry: RegistryHand, tiny_model: Path, tiny_adapter: SourceFactory, tmp_path: Path, name: str
) -> None:
    looping = saying("x", tiny_model, tmp_path / "looping")
    champion, _ = begin(pod, registry, name, (tiny_adapter(31), looping), "0.3")
    body: dict[str, object] = {"prompt": "the dog", "max_tokens": 64, "temperature": 0.5}
    canary, answered = ask_until_stopped(pod, name, body, most=150)
    assert canary.stopped is not None
    assert "repeating themselves" in canary.stopped
    assert answered[champion.label] > answered.total() / 2


def test_a_good_challenger_goes_on(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(32)), "0.5")
    answered_by(pod, name, [f"u{number}" for number in range(200)])
    canary = canary_of(pod, name)
    assert canary is not None
    assert canary.stopped is None
    assert canary.num_answers >= 60


def test_what_was_asked_by_version_or_alias_counts_for_nothing(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    begin(pod, registry, name, (tiny_adapter(31), tiny_adapter(32)), "0.5")
    answered_by(pod, f"{name}@challenger", [None] * 20)
    canary = canary_of(pod, name)
    assert canary is not None
    assert canary.num_answers == 0


def test_a_user_header_that_is_too_long_is_refused(pod: PodProcess) -> None:
    answer = pod.http.post(
        "/v1/completions", json={"model": "", "prompt": "a"}, headers={"x-lorafleet-user": "u" * 513}
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "x-lorafleet-user"
