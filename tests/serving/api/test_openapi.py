"""The OpenAPI document against the pod: whatever Schemathesis sends, right or wrong, the answer is a described one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.serving.pod_process import PodProcess

NUM_CASES = [200, pytest.param(2000, marks=pytest.mark.soak)]
"""Cases of all operations together, right and wrong ones."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
TIMEOUT_HEADER = "x-request-timeout-s"
PLAIN = ("get", "head")
DESCRIBED = {200, 401, 403, 404, 409, 410, 413, 422, 429, 500, 503, 504, 507}


@pytest.fixture(scope="module")
def document(pod: PodProcess) -> BaseSchema:
    schema = schemathesis.openapi.from_url(f"{pod.url}/openapi.json")
    schema.hook("map_body")(_reach_the_model)
    return schema


def _reach_the_model(context: object, body: Any) -> Any:
    """Random names reach no model, and answers without a limit are as long as they can be."""
    if isinstance(body, dict):
        for owner, name in ((body, "model"), (body.get("parameters"), "adapter_id")):
            if isinstance(owner, dict) and isinstance(owner.get(name), str):
                owner[name] = ""
        if ("prompt" in body or "messages" in body) and body.get("max_tokens") is None:
            body["max_tokens"] = 8
    return body


def _patience(case: Case[Any]) -> dict[str, str]:
    """A case with a time limit of its own would be given up, just as it asks to be."""
    try:
        return {TIMEOUT_HEADER: "60"} if float(dict(case.headers or {})[TIMEOUT_HEADER]) > 0 else {}
    except (KeyError, ValueError, TypeError):
        return {}


def _modes(operation: Any, num_cases: int) -> Iterator[tuple[GenerationMode, int]]:
    """How many cases of each kind: what reads a body gets most of them, what reads nothing has one."""
    if operation.method in PLAIN:
        yield GenerationMode.POSITIVE, 1
    else:
        # For 13 routes, right and wrong; some have fewer different cases than their share.
        share = -(-num_cases // 22)
        yield GenerationMode.POSITIVE, share
        yield GenerationMode.NEGATIVE, share


@pytest.mark.parametrize("num_cases", NUM_CASES)
def test_answers_are_as_described(document: BaseSchema, num_cases: int) -> None:
    num_made = 0
    statuses: set[int] = set()
    for result in document.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        for mode, num_examples in _modes(operation, num_cases):

            @seed(7)
            @settings(
                max_examples=num_examples,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def check(case: Case[Any]) -> None:
                nonlocal num_made
                num_made += 1
                response = case.call(headers=_patience(case), timeout=60)
                statuses.add(response.status_code)
                case.validate_response(response, checks=CHECKS)

            check()
    assert num_made >= num_cases
    assert {200, 422} <= statuses


def test_every_route_tells_its_answers_and_errors(pod: PodProcess) -> None:
    document = pod.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    operations = {
        f"{method} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) >= 24
    for name, operation in operations.items():
        responses = operation["responses"]
        assert operation.get("summary"), name
        assert {int(status) for status in responses} <= DESCRIBED, name
        for status, response in responses.items():
            for content in response["content"].values():
                assert content["schema"], (name, status)
        if name.startswith("post") and "webhook" not in name:
            envelope = "OpenAIError" if "/v1/" in name else "LoraxError"
            schema = responses["422"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{envelope}"}, name
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)
    streamed = operations["post /v1/chat/completions"]["responses"]["200"]
    assert {"application/json", "text/event-stream"} == set(streamed["content"])
    assert "x-lorafleet-digest" in streamed["headers"]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/embed"])
def test_headers_of_a_lorax_answer_are_as_described(pod: PodProcess, path: str) -> None:
    responses = pod.http.get("/openapi.json").json()["paths"][path]["post"]["responses"]
    headers = {name.lower(): told for name, told in responses["200"]["headers"].items()}
    answer = pod.http.post(path, json={"inputs": "the cat"})
    assert answer.status_code == 200
    of_proxies = {"x-accel-buffering"}  # Says to what stands between that a stream must not be held back.
    assert {name for name in answer.headers if name.startswith("x-")} <= headers.keys() | of_proxies
    assert {name for name, told in headers.items() if told["required"]} <= answer.headers.keys()


def test_a_final_error_says_so_as_described(pod: PodProcess) -> None:
    responses = pod.http.get("/openapi.json").json()["paths"]["/generate"]["post"]["responses"]
    answer = pod.http.post("/generate", json={"inputs": "the cat"}, headers={TIMEOUT_HEADER: "0.000001"})
    assert (answer.status_code, answer.headers["X-Should-Retry"]) == (504, "false")
    assert "X-Should-Retry" in responses["504"]["headers"]


def test_admin_routes_name_the_token_they_want(pod: PodProcess) -> None:
    document = pod.http.get("/openapi.json").json()
    assert document["paths"]["/v1/adapters"]["get"]["security"] == [{"AdminToken": []}]
    assert pod.http.get("/v1/adapters").status_code == 401
