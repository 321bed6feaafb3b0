"""Errors as HTTP answers."""

from __future__ import annotations

import json

import pytest

from lorafleet_serving.api.errors import envelope, error_response
from lorafleet_serving.api.sse import event
from lorafleet_serving.exceptions import InvalidRequest, ServingError, UnknownAdapter
from tests.serving.pod_process import PodProcess

BODIES = {
    "/v1/completions": b'{"prompt": "%s", "max_tokens": 2}',
    "/v1/chat/completions": b'{"messages": [{"role": "user", "content": "%s"}], "max_tokens": 2}',
    "/v1/embeddings": b'{"input": "%s"}',
    "/": b'{"inputs": "%s", "parameters": {"max_new_tokens": 2}}',
    "/invocations": b'{"inputs": "%s", "parameters": {"max_new_tokens": 2}, "stream": true}',
    "/generate": b'{"inputs": "%s", "parameters": {"max_new_tokens": 2}}',
    "/generate_stream": b'{"inputs": "%s", "parameters": {"max_new_tokens": 2}}',
    "/embed": b'{"inputs": "%s"}',
    "/tokenize": b'{"inputs": "%s"}',
    "/classify": b'{"inputs": "%s"}',
    "/classify_batch": b'{"inputs": ["%s"]}',
}
NO_UTF8 = [
    b"\xff",
    b"the c\xe4t",
    b"half a \xe2\x82",
    b"too long \xc0\xaf",
    b"no such character \xf5\x80\x80\x80",
    b"half a pair \xed\xa0\x80",
]


@pytest.mark.parametrize("error", [UnknownAdapter("no \ud800 \U0001f600"), InvalidRequest("no \udfff", field="model")])
@pytest.mark.parametrize("lorax", [False, True])
def test_half_a_character_in_a_message_is_spelled_out(error: ServingError, lorax: bool) -> None:
    spelled = str(error).encode(errors="backslashreplace").decode()
    answered = json.loads(bytes(error_response("/generate" if lorax else "/v1/completions", error).body))
    streamed = json.loads(event(envelope(error, lorax=lorax)).encode().removeprefix(b"data: "))
    assert streamed == answered
    assert (answered["error"] if lorax else answered["error"]["message"]) == spelled


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=latin-1", "text/plain", None])
@pytest.mark.parametrize("path", BODIES)
def test_bytes_that_are_no_utf8_are_refused_and_harm_nobody(
    pod: PodProcess, path: str, content_type: str | None
) -> None:
    body, headers = BODIES[path], {} if content_type is None else {"Content-Type": content_type}
    engine_pid, num_logged = pod.child_pids()["engine"], pod.log.stat().st_size
    broken = [body % text for text in NO_UTF8]
    broken += [
        b'{"\xff": 1, ' + body[1:] % b"x",
        b"\xff" + body % b"x",
        body % b"x" + b"\xff",
        body[:-1] % b"x" + b"\xff}",
    ]
    # Marks of other encodings, and what has their length.
    broken += [
        b"\xff\xfe",
        b"\xfe\xff\x00",
        b"\x00\x00\xfe\xff\x00",
        b"\x80" * 1000,
        (body % b"x").decode().encode("utf-16")[:-1],
    ]
    for content in broken:
        response = pod.http.post(path, content=content, headers=headers)
        assert response.status_code == 422, (content, response.text)
        error = response.json()["error"]
        message, kind = (error["message"], error["type"]) if "/v1/" in path else (error, response.json()["error_type"])
        assert message, content
        assert kind in {"invalid_request_error", "validation"}
    allowed = pod.http.post("/v1/completions", json={"prompt": "the cat", "max_tokens": 2})
    assert (allowed.status_code, pod.child_pids()["engine"]) == (200, engine_pid)
    assert b"Traceback" not in pod.log.read_bytes()[num_logged:]


@pytest.mark.parametrize("place", ["%FF", "a%C0%AF", "%ED%A0%80"])
def test_a_path_that_is_no_utf8_names_no_model(pod: PodProcess, place: str) -> None:
    response = pod.http.get(f"/v1/models/{place}")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
