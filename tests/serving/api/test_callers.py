"""A pod that tells callers apart by keys: who may ask for what, for how long, and how many may wait."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.serving.conftest import PodFactory
from tests.serving.pod_process import ADMIN_TOKEN, PodProcess

SEARCH, BATCH = "key-of-search-4711", "key-of-batch-0815"
MAX_WAITING = 4
ROUTES = {
    "/v1/completions": {"prompt": "Hello", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    "/v1/embeddings": {"input": "Hello"},
    "/": {"inputs": "Hello", "parameters": {"max_new_tokens": 2}},
    "/generate": {"inputs": "Hello", "parameters": {"max_new_tokens": 2}},
    "/generate_stream": {"inputs": "Hello", "parameters": {"max_new_tokens": 2}},
    "/embed": {"inputs": "Hello"},
    "/tokenize": {"inputs": "Hello"},
}
LONG_TEXT: dict[str, Any] = {"prompt": "Hello", "max_tokens": 200, "ignore_eos": True}
LONG_LORAX = {"inputs": "Hello", "parameters": {"max_new_tokens": 200, "ignore_eos_token": True}}


@pytest.fixture(scope="module")
def pod(pod_factory: PodFactory, tmp_path_factory: pytest.TempPathFactory) -> PodProcess:
    keys = [
        {"name": "search", "sha256": _digest(SEARCH), "weight": 3, "max_priority": 1, "scopes": ["versions"]},
        {"name": "batch", "sha256": _digest(BATCH), "max_waiting": 2},
    ]
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text(json.dumps({"keys": keys}))
    flags = ("--api-keys", str(path), "--max-num-seqs", "2", "--max-waiting", str(MAX_WAITING))
    started = pod_factory(*flags)
    started.wait_ready()
    return started


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} | {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.mark.parametrize("path", ROUTES)
def test_routes_that_compute_ask_for_a_key(pod: PodProcess, path: str) -> None:
    for headers in ({}, bearer("wrong"), {"Authorization": "Bearer"}, {"Authorization": f"Basic {SEARCH}"}):
        response = pod.http.post(path, json=ROUTES[path], headers=headers)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert "error_type" in response.json() if "v1" not in path else "type" in response.json()["error"]
    for key in (SEARCH, BATCH, ADMIN_TOKEN):
        assert pod.http.post(path, json=ROUTES[path], headers=bearer(key)).status_code == 200


def test_nothing_is_read_of_a_body_without_a_key(pod: PodProcess) -> None:
    assert pod.http.post("/v1/completions", content=b"no json").status_code == 401


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/info", "/version"])
def test_what_is_only_looked_at_stays_open(pod: PodProcess, path: str) -> None:
    assert pod.http.get(path).status_code == 200


def test_a_key_is_no_admin_token(pod: PodProcess) -> None:
    assert pod.http.get("/v1/adapters", headers=bearer(SEARCH)).status_code == 401


def test_versions_are_for_keys_with_that_scope(pod: PodProcess) -> None:
    body = {"model": "nobody:1", "prompt": "Hello"}
    statuses = [
        pod.http.post("/v1/completions", json=body, headers=bearer(key)).status_code
        for key in (BATCH, SEARCH, ADMIN_TOKEN)
    ]
    assert statuses == [403, 404, 404]


def test_priority_is_limited_by_the_key(pod: PodProcess) -> None:
    def ask(key: str, priority: str) -> httpx.Response:
        return pod.http.post("/generate", json=ROUTES["/generate"], headers=bearer(key, x_request_priority=priority))

    assert [ask(SEARCH, priority).status_code for priority in ("-2", "1", "2")] == [200, 200, 403]
    assert [ask(BATCH, priority).status_code for priority in ("0", "1")] == [200, 403]
    assert ask(ADMIN_TOKEN, "2").status_code == 200


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *[("x-request-priority", value) for value in ("3", "-3", "high", "", "1.0", "--1", "²", "9" * 5000)],
        *[("x-request-timeout-s", value) for value in ("0", "-1", "nan", "inf", "soon", "", "86401")],
    ],
)
def test_header_out_of_range_is_named(pod: PodProcess, header: str, value: str) -> None:
    headers = [(b"authorization", f"Bearer {SEARCH}".encode()), (header.encode(), value.encode("latin-1"))]
    response = pod.http.post("/v1/completions", json=ROUTES["/v1/completions"], headers=headers)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == header


def test_request_past_its_deadline_is_answered_504(pod: PodProcess) -> None:
    headers = bearer(SEARCH, x_request_timeout_s="0.0001")
    response = pod.http.post("/v1/completions", json=LONG_TEXT, headers=headers)
    assert (response.status_code, response.headers["x-should-retry"]) == (504, "false")
    assert response.json()["error"]["type"] == "timeout_error"
    response = pod.http.post("/generate", json=LONG_LORAX, headers=headers)
    assert (response.status_code, response.json()["error_type"]) == (504, "timeout")
    response = pod.http.post("/v1/completions", json=LONG_TEXT | {"stream": True}, headers=headers)
    assert '"code":504' in response.text.splitlines()[-2]
    wait_until_free(pod)


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", LONG_TEXT), ("/generate", LONG_LORAX)])
def test_requests_beyond_the_limit_are_told_when_to_come_back(pod: PodProcess, path: str, body: dict[str, Any]) -> None:
    def ask(_: int) -> httpx.Response:
        return pod.http.post(path, json=body, headers=bearer(BATCH))

    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(ask, range(16)))
    refused = [response for response in responses if response.status_code == 429]
    assert {response.status_code for response in responses} == {200, 429}
    assert len(refused) >= 4
    assert all(1 <= int(response.headers["retry-after"]) <= 30 for response in refused)
    assert all("batch" in response.text for response in refused)
    wait_until_free(pod)


def test_callers_who_leave_free_all_they_held(pod: PodProcess) -> None:
    answers = [
        pod.http.send(
            pod.http.build_request(
                "POST", "/v1/completions", json=LONG_TEXT | {"stream": True}, headers=bearer(SEARCH)
            ),
            stream=True,
        )
        for _ in range(4)
    ]  # Two run and two wait.
    next(answers[0].iter_lines())
    for answer in answers:
        answer.close()
    wait_until_free(pod)
    assert pod.metric("vllm:num_preemptions_total") == 0


def test_keys_show_nowhere(pod: PodProcess) -> None:
    shown = pod.log.read_text() + pod.http.get("/metrics").text + pod.http.get("/v1/models").text
    for key in (SEARCH, BATCH):
        assert key not in shown
        assert _digest(key) not in shown


def wait_until_free(pod: PodProcess) -> None:
    """Wait until nothing runs, waits or holds blocks."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    pod.wait_for(lambda: True if all(pod.metric(name) == 0 for name in names) else None, "the pod to be free")
