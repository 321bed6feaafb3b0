"""Admin routes, nudges and probes against a running pod."""

from __future__ import annotations

import json
import time

import pytest

from lorafleet_contract.webhook import DELIVERY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, webhook_signature
from tests.serving.conftest import SourceFactory
from tests.serving.pod_process import ADMIN_TOKEN, WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import RegistryHand

BODY = json.dumps({"entity": "registered_model", "action": "changed", "data": {"name": "nudged"}}).encode()


def _headers(delivery: str, age_s: int = 0, secret: str = WEBHOOK_SECRET) -> dict[str, str]:
    timestamp = str(int(time.time()) - age_s)
    signature = webhook_signature(BODY, delivery, timestamp, secret)
    return {DELIVERY_HEADER: delivery, TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature}


@pytest.mark.parametrize("header", [None, "Bearer wrong", ADMIN_TOKEN, "Bearer"])
def test_the_adapters_report_needs_the_admin_token(pod: PodProcess, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = pod.http.get("/v1/adapters", headers=headers)
    assert response.status_code == 401
    assert "adapters" not in response.json()


def test_the_report_tells_pod_base_and_capacity(pod: PodProcess) -> None:
    report = pod.client.report()
    assert report.base_model == "tiny-llama"
    assert report.base_digest.startswith("sha256:")
    assert report.registry_error is None
    assert report.synced_at is not None
    assert report.capacity["max_model_len"] == 256


@pytest.mark.parametrize("flaw", ["unsigned", "wrong secret", "too old", "from the future", "other body"])
def test_a_flawed_delivery_is_refused(pod: PodProcess, flaw: str) -> None:
    headers = {
        "unsigned": {},
        "wrong secret": _headers("d1", secret="another"),
        "too old": _headers("d2", age_s=301),
        "from the future": _headers("d3", age_s=-301),
        "other body": _headers("d4"),
    }[flaw]
    body = BODY + b" " if flaw == "other body" else BODY
    assert pod.http.post("/v1/registry/webhook", content=body, headers=headers).status_code == 401


def test_a_delivery_counts_once(pod: PodProcess) -> None:
    headers = _headers("only-once")
    answers = [pod.http.post("/v1/registry/webhook", content=BODY, headers=headers).json() for _ in range(2)]
    assert [answer["status"] for answer in answers] == ["accepted", "seen before"]


def test_a_signed_body_without_a_name_is_invalid(pod: PodProcess) -> None:
    timestamp = str(int(time.time()))
    signature = webhook_signature(b"{}", "nameless", timestamp, WEBHOOK_SECRET)
    headers = {DELIVERY_HEADER: "nameless", TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature}
    assert pod.http.post("/v1/registry/webhook", content=b"{}", headers=headers).status_code == 422


def test_probes_answer(pod: PodProcess) -> None:
    for path in ("/", "/health", "/ready", "/v2/health/live", "/v2/health/ready", "/version", "/docs"):
        assert pod.http.get(path).status_code == 200, path
    status = pod.client.status()
    assert (status["engine"], status["registry"], status["fetcher"]) == ("ready", "read", "ready")


def test_metrics_carry_the_names_that_routers_read(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    registered = registry.register("measured", tiny_adapter(1))
    registry.promote(registered)
    pod.wait_serving("measured", 1)
    pod.client.complete("measured", "the cat", max_tokens=3)
    text = pod.http.get("/metrics").text
    for name in (
        'vllm:num_requests_running{engine="0",model_name="tiny-llama"}',
        "vllm:num_requests_waiting{",
        "vllm:kv_cache_usage_perc{",
        "vllm:time_to_first_token_seconds_bucket{",
        "vllm:e2e_request_latency_seconds_count{",
        "vllm:prompt_tokens_total{",
        "vllm:generation_tokens_total{",
        'vllm:request_success_total{engine="0",finished_reason="length"',
        'lorafleet_adapter_requests_total{adapter="measured"}',
    ):
        assert name in text, name
    assert sum(line.startswith("vllm:lora_requests_info{") for line in text.splitlines()) == 1


def test_an_unknown_path_has_the_envelope_too(pod: PodProcess) -> None:
    response = pod.http.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == 404
