"""Long answers as JSON: byte for byte as short ones are, and not made on the event loop."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from hypothesis import given, strategies as st

from lorafleet_serving.api import long_json as module
from lorafleet_serving.api.long_json import LongJSONResponse, json_response, long_json, written

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(VALUES)
def test_it_is_what_a_short_answer_would_be(value: Any) -> None:
    assert LongJSONResponse(value).body == JSONResponse(value).body


def test_no_call_of_the_encoder_gets_a_long_list(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    plain = module._encode

    def encode(value: Any) -> str:
        given.append(len(value) if isinstance(value, list) else 1)
        return plain(value)

    monkeypatch.setattr(module, "_encode", encode)
    rows = [{" the": -1.5, "é": -2.0}] * 1000
    answer = {"choices": [{"text": "x", "logprobs": {"tokens": ["x"] * 1000, "top_logprobs": rows}}] * 100}
    assert long_json(answer) == plain(answer)
    assert max(given) <= 64


def test_a_conversation_s_log_probabilities_are_written_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    plain = module._encode

    def encode(value: Any) -> str:
        given.append(len(plain(value)))
        return plain(value)

    monkeypatch.setattr(module, "_encode", encode)
    entry = {"token": "the", "logprob": -0.5, "bytes": [116, 104, 101]}
    logprobs = {"content": [{**entry, "top_logprobs": [entry] * 20}] * 1000, "refusal": None}
    answer = {"choices": [{"index": index, "message": {"content": "x"}, "logprobs": logprobs} for index in range(3)]}
    assert long_json(answer) == plain(answer)
    assert len(given) < 3 * 1000 + 50
    assert max(given) < 2000


async def test_what_is_long_is_written_by_a_thread() -> None:
    assert await written(10, threading.get_ident) == threading.get_ident()
    assert await written(10_000, threading.get_ident) != threading.get_ident()
    for num_logprobs in (10, 10_000):
        answer = await json_response(num_logprobs, lambda: {"a": [1, 2]}, {"x-a": "b"})
        assert (answer.body, answer.headers["x-a"]) == (b'{"a":[1,2]}', "b")
