"""Adapters merged for callers by a running pod: what they answer, and when they come and go."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters.merge import merge_adapters
from lorafleet_serving.adapters.merge_recipe import MajoritySign, MergeMember, MergeRecipe, MergeStrategy
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.pod_process import PodProcess
from tests.serving.random_model import peft_answers
from tests.serving.registered_adapter import Registered, RegistryHand
from tests.serving.tiny_model import make_tiny_adapter

INPUTS = "the cat sat on"
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def merging_pod(pod_factory: PodFactory) -> PodProcess:
    """A pod that holds two merged adapters, for three seconds."""
    pod = pod_factory("--dtype", "float32", "--max-merged-adapters", "2", "--merged-idle", "3")
    pod.wait_ready()
    return pod


@pytest.fixture(scope="module")
def members(merging_pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> dict[str, Registered]:
    found = {}
    for seed, name in enumerate(("merge-a", "merge-b"), start=21):
        found[name] = registry.register(name, tiny_adapter(seed))
        registry.promote(found[name])
    for name in found:
        merging_pod.wait_serving(name, 1)
    return found


def ask(pod: PodProcess, merged: Mapping[str, object], **parameters: object) -> Any:
    settings = {"merged_adapters": merged, "max_new_tokens": NUM_TOKENS, "details": True, **parameters}
    response = pod.http.post("/generate", json={"inputs": INPUTS, "parameters": settings})
    assert response.status_code == 200, response.text
    return response


def num_loaded(pod: PodProcess) -> int:
    """Adapters that the engine holds beyond those of the registry."""
    return int(pod.metric("lorafleet_merged_adapters"))


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        (MergeStrategy.LINEAR, {"density": 0.0}),
        (MergeStrategy.TIES, {"density": 0.5, "majority_sign_method": "frequency"}),
        (MergeStrategy.DARE_LINEAR, {"density": 0.7, "seed": 5}),
        (MergeStrategy.DARE_TIES, {"density": 0.7, "majority_sign_method": "total"}),
    ],
)
def test_a_merged_adapter_answers_as_peft_does_with_the_merged_files(
    merging_pod: PodProcess,
    members: dict[str, Registered],
    tiny_adapter: SourceFactory,
    strategy: MergeStrategy,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    merged = {"ids": list(members), "weights": [0.9, -0.7], "merge_strategy": str(strategy), **settings}
    response = ask(merging_pod, merged)
    digests = [registered.digest for registered in members.values()]
    members_of_recipe = tuple(MergeMember(*pair) for pair in zip(digests, [0.9, -0.7], strict=True))
    recipe = MergeRecipe(members_of_recipe)
    if strategy is not MergeStrategy.LINEAR:
        sign = MajoritySign(settings.get("majority_sign_method", "total"))
        recipe = MergeRecipe(members_of_recipe, strategy, settings["density"], sign, settings.get("seed", 0))
    assert response.headers["x-lorafleet-adapter"] == response.headers["x-adapter-id"] == "merge-a:1+merge-b:1"
    assert response.headers["x-lorafleet-digest"] == recipe.digest
    merge_adapters([tiny_adapter(21).folder, tiny_adapter(22).folder], recipe, tmp_path)
    prompt = [token["id"] for token in merging_pod.http.post("/tokenize", json={"inputs": INPUTS}).json()]
    (expected,) = peft_answers(tiny_adapter(21).model, tmp_path, [prompt], NUM_TOKENS)
    assert [token["id"] for token in response.json()["details"]["tokens"]] == expected


def test_they_are_few_and_leave_when_nobody_asks(merging_pod: PodProcess, members: dict[str, Registered]) -> None:
    answers = {}
    for weight in (0.1, 0.2, 0.3):
        answers[weight] = ask(merging_pod, {"ids": list(members), "weights": [1.0, weight]}).json()
        assert num_loaded(merging_pod) <= 2
    assert num_loaded(merging_pod) == 2
    # The first had to leave, and is made again.
    assert ask(merging_pod, {"ids": list(members), "weights": [1.0, 0.1]}).json() == answers[0.1]
    merging_pod.wait_for(lambda: num_loaded(merging_pod) == 0 or None, "the merged adapters to leave")
    report = merging_pod.client.report()
    assert all(item.versions[0].state is ServeState.READY for item in report.adapters if item.name in members)


def test_a_merge_follows_its_members(
    merging_pod: PodProcess, members: dict[str, Registered], registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    first = registry.register("merge-c", tiny_adapter(23))
    registry.promote(first)
    merging_pod.wait_serving("merge-c", 1)
    merged = {"ids": ["merge-a", "merge-c"], "weights": [0.5, 0.5]}
    before = ask(merging_pod, merged)
    second = registry.register("merge-c", tiny_adapter(24))
    registry.promote(second)
    merging_pod.wait_serving("merge-c", 2)
    after = ask(merging_pod, merged)
    assert after.headers["x-lorafleet-adapter"] == "merge-a:1+merge-c:2"
    assert after.headers["x-lorafleet-digest"] != before.headers["x-lorafleet-digest"]
    registry.withdraw(second)
    status = merging_pod.wait_for(
        lambda: found if (found := _status(merging_pod, merged)) != 200 else None, "the member to be withdrawn"
    )
    assert status == 410


def test_an_engine_that_died_gets_its_merges_again(merging_pod: PodProcess, members: dict[str, Registered]) -> None:
    merged = {"ids": list(members), "weights": [0.4, 0.6]}
    before = ask(merging_pod, merged)
    os.kill(merging_pod.child_pids()["engine"], signal.SIGKILL)
    merging_pod.wait_for(lambda: _status(merging_pod, merged) == 200 or None, "the merge to be served again")
    after = ask(merging_pod, merged)
    assert after.json() == before.json()


def test_members_of_different_rank_are_refused(
    merging_pod: PodProcess,
    members: dict[str, Registered],
    registry: RegistryHand,
    tiny_adapter: SourceFactory,
    tmp_path: Path,
) -> None:
    source = replace(tiny_adapter(21), folder=make_tiny_adapter(tiny_adapter(21).model, tmp_path / "wide", 9, 6))
    registry.promote(registry.register("merge-wide", source))
    merging_pod.wait_serving("merge-wide", 1)
    settings = {"merged_adapters": {"ids": ["merge-a", "merge-wide"], "weights": [1, 1]}, "max_new_tokens": 2}
    response = merging_pod.http.post("/generate", json={"inputs": INPUTS, "parameters": settings})
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")
    assert "different ranks" in response.json()["error"]


def _status(pod: PodProcess, merged: Mapping[str, object]) -> int:
    body = {"inputs": INPUTS, "parameters": {"merged_adapters": merged, "max_new_tokens": 1}}
    return pod.http.post("/generate", json=body).status_code
