"""The OpenAPI document against the pod: whatever Schemathesis sends, right or wrong, the answer is a described one."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from schemathesis import BaseSchema, Case, GenerationMode, HookContext
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

from lorafleet_contract.states import ServeState
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.pod_process import ADMIN_TOKEN, PodProcess
from tests.serving.registered_adapter import RegistryHand, with_report

CASES = [(200, 7), pytest.param(2000, None, marks=pytest.mark.soak)]
"""Cases of all operations together, right and wrong ones, and the seed that they are drawn with; None draws one."""
ANSWER_CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CHECKS = [*ANSWER_CHECKS, not_a_server_error, negative_data_rejection, unsupported_method]
TIMEOUT_HEADER = "x-request-timeout-s"
PLAIN = ("get", "head")
DESCRIBED = {200, 400, 401, 403, 404, 409, 410, 413, 422, 429, 500, 503, 504, 507}
SERVED, WITHDRAWN, REFUSED = "described", "described-withdrawn", "described-refused"
MODELS = ["", "", SERVED, SERVED, f"{SERVED}:1", f"{SERVED}:1", f"{SERVED}@champion"]
MODELS += [f"{SERVED}:2", f"{SERVED}@nobody", WITHDRAWN, f"{WITHDRAWN}:1", REFUSED, "nobody", "nobody:1"]
"""What cases ask for, each about as often as the others."""
NAMES_A_MODEL = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the cat"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the cat"}]},
    "/v1/embeddings": {"input": "the cat"},
    "/": {"inputs": "the cat"},
    "/invocations": {"inputs": "the cat"},
    "/generate": {"inputs": "the cat"},
    "/generate_stream": {"inputs": "the cat"},
    "/embed": {"inputs": "the cat"},
}
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
KEY = "key-of-the-document"


@pytest.fixture(scope="module")
def document(pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> BaseSchema:
    """What the pod says of itself; it has an adapter that is served, and some that are not."""
    served, withdrawn = registry.register(SERVED, tiny_adapter(1)), registry.register(WITHDRAWN, tiny_adapter(2))
    refused = registry.register(REFUSED, with_report(tiny_adapter(3), status="failed", reason="no lift over base"))
    for registered in (served, withdrawn, refused):
        registry.promote(registered)
    pod.wait_serving(SERVED, 1)
    pod.wait_serving(WITHDRAWN, 1)
    pod.wait_state(REFUSED, 1, ServeState.REFUSED)
    registry.withdraw(withdrawn)
    body = {"model": WITHDRAWN, **ASKED["/v1/completions"]}
    pod.wait_for(lambda: pod.http.post("/v1/completions", json=body).status_code == 410 or None, "it to be withdrawn")
    schema = schemathesis.openapi.from_url(f"{pod.url}/openapi.json")
    schema.hook("flatmap_body")(_reach_models)
    return schema


def _reach_models(context: HookContext, body: Any) -> st.SearchStrategy[Any]:
    """Random names reach no model, and answers without a limit are as long as they can be."""
    if not isinstance(body, dict):
        return st.just(body)
    path = context.operation.path if context.operation is not None else ""
    return st.sampled_from(MODELS).map(partial(_asking, path, body))


def _asking(path: str, body: dict[str, Any], model: str) -> dict[str, Any]:
    body, parameters = dict(body), body.get("parameters")
    # A name of another type is there to be refused.
    if path in NAMES_A_MODEL and isinstance(body.get("model", ""), str):
        body["model"] = model
    if isinstance(parameters, dict) and isinstance(parameters.get("adapter_id"), str):
        body["parameters"] = {**parameters, "adapter_id": model}
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


@pytest.mark.parametrize(("num_cases", "fixed_seed"), CASES)
def test_answers_are_as_described(document: BaseSchema, num_cases: int, fixed_seed: int | None) -> None:
    drawn = random.SystemRandom().getrandbits(32) if fixed_seed is None else fixed_seed
    print(f"cases are drawn with the seed {drawn}: to draw them again, put it into CASES")
    statuses, reached = Counter[int](), set[str]()
    for result in document.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        for mode, num_examples in _modes(operation, num_cases):

            @seed(drawn)
            @settings(
                max_examples=num_examples,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode), st.booleans())
            def check(case: Case[Any], is_admin: bool) -> None:
                headers = _patience(case) | (ADMIN if is_admin else {})
                response = case.call(headers=headers, timeout=60)
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    reached.update(response.headers.get("x-lorafleet-adapter", []))
                case.validate_response(response, checks=CHECKS)

            check()
    assert statuses.total() >= num_cases
    assert {200, 403, 404, 422} <= statuses.keys()
    assert reached == {"", f"{SERVED}:1"}


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


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    ("model", "status"),
    [
        (f"{SERVED}@champion", 200),
        ("nobody", 404),
        (f"{SERVED}:1", 403),
        (REFUSED, 409),
        (WITHDRAWN, 410),
    ],
)
def test_answers_of_each_kind_of_model_are_as_described(
    document: BaseSchema, path: str, model: str, status: int
) -> None:
    _check_answer(document, path, _naming(path, model), {}, status)


@pytest.mark.parametrize("path", ASKED)
def test_prompts_that_are_too_long_are_answered_as_described(document: BaseSchema, path: str) -> None:
    body = json.loads(json.dumps(ASKED[path]).replace("the cat", "the cat " * 1000))
    _check_answer(document, path, body, {}, 413)


@pytest.fixture(scope="module")
def keyed_document(pod_factory: PodFactory, tmp_path_factory: pytest.TempPathFactory) -> BaseSchema:
    """Of a pod that asks for keys."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "document", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]}))
    keyed_pod = pod_factory("--api-keys", str(path))
    keyed_pod.wait_ready()
    return schemathesis.openapi.from_url(f"{keyed_pod.url}/openapi.json")


@pytest.mark.parametrize("path", [*ASKED, "/tokenize", "/classify", "/classify_batch"])
def test_answers_without_a_key_are_as_described(keyed_document: BaseSchema, path: str) -> None:
    body = ASKED.get(path, {"inputs": "the cat"})
    _check_answer(keyed_document, path, body, {}, 401)
    _check_answer(keyed_document, path, body, {"Authorization": "Bearer wrong"}, 401)


@pytest.mark.parametrize("path", ASKED)
def test_answers_to_a_key_that_may_not_are_as_described(keyed_document: BaseSchema, path: str) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    _check_answer(keyed_document, path, _naming(path, f"{SERVED}:1"), key, 403)
    _check_answer(keyed_document, path, ASKED[path], {**key, "x-request-priority": "2"}, 403)
    _check_answer(keyed_document, path, ASKED[path], key, 200)


def _naming(path: str, model: str) -> dict[str, Any]:
    named = {"model": model} if path in NAMES_A_MODEL else {"parameters": {"adapter_id": model}}
    return {**ASKED[path], **named}


def _check_answer(document: BaseSchema, path: str, body: dict[str, Any], headers: dict[str, str], status: int) -> None:
    case = document[path]["POST"].Case(body=body, headers=headers, media_type="application/json")
    response = case.call(timeout=60)
    assert response.status_code == status, response.text
    case.validate_response(response, checks=ANSWER_CHECKS)


def test_admin_routes_name_the_token_they_want(pod: PodProcess) -> None:
    document = pod.http.get("/openapi.json").json()
    assert document["paths"]["/v1/adapters"]["get"]["security"] == [{"AdminToken": []}]
    assert pod.http.get("/v1/adapters").status_code == 401
