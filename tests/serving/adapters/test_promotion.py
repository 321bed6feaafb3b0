"""Promotion from the registry into a running pod: load beside, move the name, never mix."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from lorafleet_contract.aliases import Stage
from lorafleet_contract.states import ServeState, Tier
from lorafleet_serving.client import Completion, PodError
from tests.serving.conftest import SourceFactory
from tests.serving.pod_process import WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import RegistryHand, with_report


def test_a_champion_is_served_under_its_bare_name(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    first = registry.register("promoted", tiny_adapter(1))
    registry.promote(first)
    pod.wait_serving("promoted", first.version)
    answer = pod.client.complete("promoted", "the cat", max_tokens=8)
    base = pod.client.complete("", "the cat", max_tokens=8)
    assert (answer.adapter, answer.digest) == ("promoted:1", first.digest)
    assert base.adapter == ""
    assert answer.text != base.text
    report = pod.version("promoted", 1)
    assert report is not None
    assert (report.state, report.aliases, report.error) == (ServeState.READY, ("champion",), None)
    assert {Tier.HOST, Tier.DISK} <= set(report.tiers)


def test_a_hot_swap_fails_no_request_and_mixes_no_versions(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    first, second = (registry.register("swapped", tiny_adapter(seed)) for seed in (1, 2))
    registry.promote(first)
    pod.wait_serving("swapped", 1)
    done = Event()

    def ask_on() -> list[Completion]:
        answers = []
        while not done.is_set():
            answers.append(pod.client.complete("swapped", "the cat", max_tokens=12))
        return answers

    with ThreadPoolExecutor(4) as callers:
        running = [callers.submit(ask_on) for _ in range(4)]
        registry.promote(second)
        pod.client.nudge("swapped", WEBHOOK_SECRET)
        pod.wait_serving("swapped", 2)
        pod.client.complete("swapped", "the cat", max_tokens=1)
        done.set()
        answers = [answer for caller in running for answer in caller.result()]
    texts = {
        digest: {answer.text for answer in answers if answer.digest == digest}
        for digest in (first.digest, second.digest)
    }
    assert {answer.digest for answer in answers} <= set(texts)
    assert len(texts[first.digest]) == 1
    assert len(texts[second.digest]) <= 1
    assert pod.client.complete("swapped", "the cat", max_tokens=12).digest == second.digest


def test_a_stream_finishes_on_the_version_it_started_with(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    first, second = (registry.register("streamed", tiny_adapter(seed)) for seed in (3, 4))
    registry.promote(first)
    pod.wait_serving("streamed", 1)
    whole = pod.client.complete("streamed", "the dog", max_tokens=200).text
    parts = pod.client.stream("streamed", "the dog", max_tokens=200)
    received = [next(parts)]
    registry.promote(second)
    pod.client.nudge("streamed", WEBHOOK_SECRET)
    pod.wait_serving("streamed", 2)
    received += parts
    assert {part.digest for part in received} == {first.digest}
    assert "".join(part.text for part in received) == whole


def test_a_rollback_needs_no_download(pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> None:
    first, second = (registry.register("rolled-back", tiny_adapter(seed)) for seed in (1, 2))
    registry.promote(first)
    registry.promote(first, "live")
    pod.wait_serving("rolled-back", 1)
    registry.promote(second)
    pod.wait_serving("rolled-back", 2)
    for name in ("manifest.json", "adapter/adapter_model.safetensors"):
        registry.upload(f"{first.address}/{name}", b"gone")
    registry.promote(first)
    pod.client.nudge("rolled-back", WEBHOOK_SECRET)
    pod.wait_serving("rolled-back", 1)
    assert pod.client.complete("rolled-back", "the cat", max_tokens=4).digest == first.digest


def test_live_serves_while_a_champion_is_refused(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    good = registry.register("guarded", tiny_adapter(1))
    bad = registry.register("guarded", with_report(tiny_adapter(2), status="failed", reason="no lift over base"))
    registry.promote(good)
    registry.promote(good, "live")
    pod.wait_serving("guarded", 1)
    registry.promote(bad)
    refused = pod.wait_state("guarded", 2, ServeState.REFUSED)
    assert refused.error is not None
    assert "no lift over base" in refused.error
    assert pod.client.complete("guarded", "the cat", max_tokens=4).digest == good.digest
    with pytest.raises(PodError, match="no lift over base") as error:
        pod.client.complete("guarded:2", "the cat", max_tokens=4)
    assert error.value.status == 409


def test_two_versions_may_share_a_digest(pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> None:
    first, second = (registry.register("shared", tiny_adapter(5)) for _ in range(2))
    assert first.digest == second.digest
    registry.promote(first)
    pod.wait_serving("shared", 1)
    registry.promote(second)
    pod.wait_serving("shared", 2)
    answer = pod.client.complete("shared", "the cat", max_tokens=4)
    assert (answer.adapter, answer.digest) == ("shared:2", first.digest)


def test_a_champion_that_the_next_one_archives_answers_until_the_alias_moves(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    first, second = (registry.register("tidied", tiny_adapter(seed)) for seed in (1, 2))
    registry.promote(first)
    pod.wait_serving("tidied", 1)
    registry.client.transition_stage("tidied", second.version, Stage.PRODUCTION)
    registry.client.transition_stage("tidied", first.version, Stage.PRODUCTION, archive_existing=True)
    registry.client.transition_stage("tidied", second.version, Stage.PRODUCTION, archive_existing=True)
    archived_at = time.time()

    def looked() -> bool | None:
        synced_at = pod.client.report().synced_at
        return True if synced_at is not None and synced_at > archived_at + 0.5 else None

    pod.wait_for(looked, "a look at the registry that began after the change")
    assert pod.client.complete("tidied", "the", max_tokens=1).adapter == "tidied:1"


def test_a_withdrawn_version_is_gone(pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> None:
    only = registry.register("withdrawn", tiny_adapter(1))
    registry.promote(only)
    pod.wait_serving("withdrawn", 1)
    registry.withdraw(only)

    def gone() -> int | None:
        response = pod.http.post("/v1/completions", json={"model": "withdrawn", "prompt": "the", "max_tokens": 1})
        return response.status_code if response.status_code != 200 else None

    assert pod.wait_for(gone, "the version to be withdrawn") == 410


def test_aliases_reach_their_versions_and_a_shadow_answers_nobody(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    versions = [registry.register("aliased", tiny_adapter(seed)) for seed in (1, 2, 3)]
    for version, alias in zip(versions, ("champion", "challenger", "shadow"), strict=True):
        registry.promote(version, alias)
    pod.wait_state("aliased", 2, ServeState.READY)
    pod.wait_state("aliased", 3, ServeState.READY)
    answer = pod.client.complete("aliased@challenger", "the cat", max_tokens=4)
    assert answer.version == 2
    with pytest.raises(PodError, match="shadow") as error:
        pod.client.complete("aliased@shadow", "the cat", max_tokens=4)
    assert error.value.status == 403
    with pytest.raises(PodError) as unknown:
        pod.client.complete("aliased@elsewhere", "the cat", max_tokens=4)
    assert unknown.value.status == 404


def test_a_version_that_no_alias_asks_for_leaves_the_engine(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    first, second = (registry.register("left", tiny_adapter(seed)) for seed in (6, 7))
    registry.promote(first)
    pod.wait_serving("left", 1)
    registry.promote(second)
    pod.wait_serving("left", 2)
    pod.wait_for(lambda: True if pod.version("left", 1) is None else None, "the old version to be let go")
    with pytest.raises(PodError, match="not loaded") as error:
        pod.client.complete("left:1", "the cat", max_tokens=4)
    assert error.value.status == 409


def test_an_alias_that_moves_to_and_fro_while_a_version_loads_ends_where_it_stands(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    first, second = (registry.register("wavering", tiny_adapter(seed)) for seed in (40, 41))
    registry.promote(first)
    pod.wait_serving("wavering", 1)
    digests = set()
    for aim in (second, first) * 4 + (second,):
        registry.promote(aim)
        pod.client.nudge("wavering", WEBHOOK_SECRET)
        digests.add(pod.client.complete("wavering", "the", max_tokens=2).digest)
    assert digests <= {first.digest, second.digest}
    pod.wait_serving("wavering", 2)
    pod.wait_for(lambda: True if pod.version("wavering", 1) is None else None, "the old version to be let go")
    assert pod.client.complete("wavering", "the", max_tokens=2).digest == second.digest


def test_a_version_deleted_while_it_loads_is_forgotten(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    only = registry.register("fleeting", tiny_adapter(42))
    registry.promote(only)
    pod.client.nudge("fleeting", WEBHOOK_SECRET)
    pod.wait_for(lambda: pod.adapter("fleeting"), "the version to be seen")
    registry.unregister(only)
    pod.client.nudge("fleeting", WEBHOOK_SECRET)
    pod.wait_for(lambda: True if pod.adapter("fleeting") is None else None, "the version to be forgotten")
    with pytest.raises(PodError) as unknown:
        pod.client.complete("fleeting", "the", max_tokens=1)
    assert unknown.value.status == 404


def test_a_name_goes_on_when_another_of_the_same_digest_is_withdrawn(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    one, other = (registry.register(name, tiny_adapter(43)) for name in ("twin-one", "twin-other"))
    assert one.digest == other.digest
    for twin in (one, other):
        registry.promote(twin)
        pod.wait_serving(twin.name, 1)
    registry.withdraw(one)
    pod.wait_for(lambda: True if pod.version("twin-one", 1) is None else None, "the withdrawn twin to be let go")
    answer = pod.client.complete("twin-other", "the cat", max_tokens=4)
    assert (answer.adapter, answer.digest) == (other.label, other.digest)
    report = pod.version("twin-other", 1)
    assert report is not None
    assert Tier.HOST in report.tiers
