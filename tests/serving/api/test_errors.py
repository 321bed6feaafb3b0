"""Errors as HTTP answers."""

from __future__ import annotations

import json

import pytest

from lorafleet_serving.api.errors import envelope, error_response
from lorafleet_serving.api.sse import event
from lorafleet_serving.exceptions import InvalidRequest, ServingError, UnknownAdapter


@pytest.mark.parametrize("error", [UnknownAdapter("no \ud800 \U0001f600"), InvalidRequest("no \udfff", field="model")])
@pytest.mark.parametrize("lorax", [False, True])
def test_half_a_character_in_a_message_is_spelled_out(error: ServingError, lorax: bool) -> None:
    spelled = str(error).encode(errors="backslashreplace").decode()
    answered = json.loads(bytes(error_response("/generate" if lorax else "/v1/completions", error).body))
    streamed = json.loads(event(envelope(error, lorax=lorax)).encode().removeprefix(b"data: "))
    assert streamed == answered
    assert (answered["error"] if lorax else answered["error"]["message"]) == spelled
