"""Versions that must not be served: refused with the reason, and taken once they are mended."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from lorafleet_contract.prompt import PromptBlock
from lorafleet_contract.states import ServeState, Tier
from lorafleet_contract.tags import Tag
from lorafleet_serving.client import PodError
from tests.serving.conftest import SourceFactory
from tests.serving.pod_process import WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import Registered, RegistryHand, with_report

pytestmark = pytest.mark.faults

WEIGHTS = "adapter/adapter_model.safetensors"


def _expect_refusal(pod: PodProcess, registered: Registered, reason: str) -> None:
    refused = pod.wait_state(registered.name, registered.version, ServeState.REFUSED)
    assert refused.error is not None
    assert reason in refused.error
    with pytest.raises(PodError) as error:
        pod.client.complete(registered.name, "the cat", max_tokens=2)
    assert error.value.status == 409
    assert reason in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "bit-flip"])
def test_damaged_weights_are_refused_and_taken_once_mended(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, damage: str, name: str
) -> None:
    registered = registry.register(name, tiny_adapter(random.randrange(1_000, 1_000_000)))
    address = f"{registered.address}/{WEIGHTS}"
    good = registry.download(address)
    flipped = bytearray(good)
    flipped[-100] ^= 1
    registry.upload(address, good[: len(good) // 2] if damage == "truncated" else bytes(flipped))
    registry.promote(registered)
    _expect_refusal(pod, registered, "truncated or were changed")
    registry.upload(address, good)
    pod.client.nudge(registered.name, WEBHOOK_SECRET)
    pod.wait_serving(registered.name, registered.version)


def test_a_failed_gate_is_refused_whatever_the_tag_says(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    source = with_report(tiny_adapter(1), status="failed", reason="worse than base")
    registered = registry.register(name, source)
    registry.client.set_version_tag(registered.name, registered.version, Tag.GATE_STATUS, "passed")
    registry.promote(registered)
    _expect_refusal(pod, registered, "worse than base")


def test_a_waived_gate_is_served(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    source = with_report(tiny_adapter(1), status="waived", waived_by="someone", reason="accepted")
    registered = registry.register(name, source)
    registry.promote(registered)
    pod.wait_serving(name, 1)


def test_a_report_signed_with_another_key_is_refused(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    registered = registry.register(name, replace(tiny_adapter(1), gate_key="another"))
    registry.promote(registered)
    _expect_refusal(pod, registered, "signature")


def test_an_exchanged_manifest_is_refused(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    registered = registry.register(name, tiny_adapter(1))
    manifest = registry.download(f"{registered.address}/manifest.json")
    registry.upload(f"{registered.address}/manifest.json", manifest.replace(b"exact_match", b"rouge_l"))
    registry.promote(registered)
    _expect_refusal(pod, registered, "manifest_digest")


def test_an_edited_digest_tag_is_refused(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    tag = {Tag.LORA_DIGEST.value: "sha256:" + "a" * 64}
    registered = registry.register(name, replace(tiny_adapter(1), tags=tag))
    registry.promote(registered)
    _expect_refusal(pod, registered, "lora.digest")


@pytest.mark.parametrize("tag", [Tag.LORA_DIGEST, Tag.LORA_BASE_DIGEST])
def test_an_edited_tag_takes_nothing_out_of_service_that_was_verified(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, tag: Tag, name: str
) -> None:
    registered = registry.register(name, tiny_adapter(33))
    registry.promote(registered)
    pod.wait_serving(registered.name, 1)
    right = registry.client.get_version(registered.name, 1).tags[tag]
    registry.client.set_version_tag(registered.name, 1, tag, "sha256:" + "c" * 64)
    pod.client.nudge(registered.name, WEBHOOK_SECRET)
    if tag is Tag.LORA_DIGEST:
        pod.wait_for(lambda: (found := pod.version(registered.name, 1)) and found.error, "the edit to be told")
    else:
        synced = pod.client.report().synced_at
        pod.wait_for(lambda: pod.client.report().synced_at != synced or None, "another look")
    assert pod.client.complete(registered.name, "the cat", max_tokens=2).digest == registered.digest
    registry.client.set_version_tag(registered.name, 1, tag, right)
    pod.client.nudge(registered.name, WEBHOOK_SECRET)

    def is_mended() -> bool | None:
        found = pod.version(registered.name, 1)
        return (found is not None and found.error is None) or None

    pod.wait_for(is_mended, "the error to go")


def test_a_missing_report_is_refused(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    registered = registry.register(name, tiny_adapter(1))
    registry.delete(f"{registered.address}/gate/report.json")
    registry.promote(registered)
    _expect_refusal(pod, registered, "gate/report.json is missing")


def test_a_rank_above_the_limit_is_refused(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    registered = registry.register(name, replace(tiny_adapter(1), rank=9999))
    registry.promote(registered)
    _expect_refusal(pod, registered, "rank is 9999")


def test_a_template_that_does_not_render_its_example_is_refused(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    block = PromptBlock(template="{{ q }}", variables=("q",), examples=({"other": "x"},))
    registered = registry.register(name, replace(tiny_adapter(1), prompt=block))
    registry.promote(registered)
    _expect_refusal(pod, registered, "first example")


def test_artifacts_outside_s3_are_refused(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    registered = registry.register(name, tiny_adapter(1), source_override="gs://bucket/nothing")
    registry.promote(registered)
    _expect_refusal(pod, registered, "s3://bucket/key")


@pytest.mark.parametrize("address", ["s3://datasets/adapter", "s3://mlflow.evil/adapter", "s3://MLFLOW/adapter"])
def test_artifacts_in_a_bucket_that_is_not_read_are_refused_unseen(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, address: str, name: str
) -> None:
    registered = registry.register(name, tiny_adapter(1), source_override=address)
    registry.promote(registered)
    _expect_refusal(pod, registered, "reads from the bucket mlflow alone")


def test_an_adapter_of_another_base_is_ignored(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    other = registry.register(f"{name}-other", replace(tiny_adapter(1), base_digest="sha256:" + "b" * 64))
    ours = registry.register(name, tiny_adapter(1))
    registry.promote(other)
    registry.promote(ours)
    pod.wait_serving(name, 1)
    assert pod.adapter(f"{name}-other") is None
    with pytest.raises(PodError) as error:
        pod.client.complete(f"{name}-other", "the cat", max_tokens=2)
    assert error.value.status == 404


def test_an_adapter_that_was_evaluated_under_another_name_is_refused(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    toy = registry.register(f"{name}-toy", tiny_adapter(31))
    posing = registry.register(name, tiny_adapter(31), source_override=toy.address)
    registry.promote(posing)
    _expect_refusal(pod, posing, f"name in the manifest is {name}-toy")


def test_what_is_refused_after_it_was_loaded_leaves_the_engine(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    block = PromptBlock(template="{{ q }}", variables=("q",), examples=({"other": "x"},))
    registered = registry.register(name, replace(tiny_adapter(32), prompt=block))
    registry.promote(registered)
    pod.wait_state(registered.name, registered.version, ServeState.REFUSED)

    def has_left() -> bool | None:
        held = pod.version(registered.name, registered.version)
        return (held is not None and held.tiers == (Tier.DISK,)) or None

    pod.wait_for(has_left, "the refused version to leave the engine")
