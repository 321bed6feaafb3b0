"""The LoRAX dialect against a running pod, in the shapes that its client reads."""

from __future__ import annotations

import json

import pytest

from tests.serving.conftest import SourceFactory
from tests.serving.pod_process import PodProcess
from tests.serving.registered_adapter import PROMPT, Registered, RegistryHand

QUESTION = {"question": "the dog"}


@pytest.fixture(scope="module")
def adapter(pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> Registered:
    """An adapter that the pod serves under its bare name."""
    registered = registry.register("lorax-way", tiny_adapter(1))
    registry.promote(registered)
    pod.wait_serving("lorax-way", 1)
    return registered


def test_generate_gives_text_and_details(pod: PodProcess, adapter: Registered) -> None:
    parameters = {"adapter_id": "lorax-way", "max_new_tokens": 6, "details": True, "return_k_alternatives": 2}
    response = pod.http.post("/generate", json={"inputs": "the cat", "parameters": parameters})
    answer = response.json()
    details = answer["details"]
    assert response.headers["x-lorafleet-digest"] == adapter.digest
    assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
    assert (details["finish_reason"], details["generated_tokens"], len(details["tokens"])) == ("length", 6, 6)
    assert all(token["logprob"] <= 0 and len(token["alternative_tokens"]) == 2 for token in details["tokens"])
    plain = pod.client.complete("lorax-way", "the cat", max_tokens=6)
    assert answer["generated_text"] == plain.text


def test_the_root_answers_with_a_list_and_tolerates_nulls(pod: PodProcess, adapter: Registered) -> None:
    nulls = dict.fromkeys(["adapter_source", "merged_adapters", "api_token", "stop", "seed", "typical_p", "best_of"])
    parameters = {**nulls, "adapter_id": "lorax-way", "max_new_tokens": 4, "do_sample": False, "watermark": False}
    answer = pod.http.post("/", json={"inputs": "the cat", "stream": False, "parameters": parameters}).json()
    assert [list(item) for item in answer] == [["generated_text"]]
    assert pod.http.post("/", json={"inputs": "the cat", "parameters": None, "stream": False}).status_code == 200


def test_a_stream_ends_with_the_whole_text_and_no_sentinel(pod: PodProcess, adapter: Registered) -> None:
    parameters = {"adapter_id": "lorax-way", "max_new_tokens": 5, "return_full_text": True}
    response = pod.http.post("/generate_stream", json={"inputs": "the cat", "parameters": parameters})
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line]
    assert len(events) == 5
    assert all(event["generated_text"] is None and event["details"] is None for event in events[:-1])
    assert events[-1]["generated_text"] == "the cat" + "".join(event["token"]["text"] for event in events)
    assert events[-1]["details"]["generated_tokens"] == 5


def test_variables_fill_the_template_here_too(pod: PodProcess, adapter: Registered) -> None:
    parameters = {"adapter_id": "lorax-way", "variables": QUESTION}
    answer = pod.http.post("/generate", json={"parameters": parameters}).json()
    by_hand = pod.client.complete(
        "lorax-way", PROMPT.render(QUESTION), max_tokens=PROMPT.max_new_tokens, stop=list(PROMPT.stop)
    )
    assert answer["generated_text"] == by_hand.text


@pytest.mark.parametrize(
    ("parameters", "status", "kind"),
    [
        ({"adapter_id": "nobody"}, 404, "not_found"),
        ({"max_new_tokens": 0}, 422, "validation"),
        ({"best_of": 2}, 422, "validation"),
        ({"adapter_source": "ftp"}, 422, "validation"),
        ({"merged_adapters": {"ids": ["a"], "weights": [1]}}, 422, "validation"),
    ],
)
def test_errors_have_the_lorax_envelope(pod: PodProcess, parameters: dict[str, object], status: int, kind: str) -> None:
    response = pod.http.post("/generate", json={"inputs": "x", "parameters": parameters})
    body = response.json()
    assert (response.status_code, body["error_type"]) == (status, kind)
    assert set(body) == {"error", "error_type"}


def test_tokenize_gives_places_in_the_text(pod: PodProcess) -> None:
    tokens = pod.http.post("/tokenize", json={"inputs": "the cat"}).json()
    assert "".join("the cat"[token["start"] : token["stop"]] for token in tokens) == "the cat"
    assert set(tokens[0]) == {"id", "text", "start", "stop"}


def test_info_gives_model_and_limits(pod: PodProcess) -> None:
    info = pod.http.get("/info").json()
    assert info["model_id"] == "tiny-llama"
    assert info["max_input_length"] == info["max_total_tokens"] - 1


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"stop": [f"{number}z" for number in range(17)]}, "stop must be at most 16"),
        ({"stop": ["a" * 501]}, "1 to 500 characters"),
        ({"stop": [1] * 1000}, "stop"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"adapter_id": "nobody"}, "no adapter"),
    ],
)
def test_bad_parameters_are_told_in_this_dialects_envelope(
    pod: PodProcess, parameters: dict[str, object], said: str
) -> None:
    for path in ("/generate", "/generate_stream"):
        response = pod.http.post(path, json={"inputs": "the cat", "parameters": parameters})
        assert response.status_code == (404 if "adapter_id" in parameters else 422)
        assert set(response.json()) == {"error", "error_type"}
        assert said in response.json()["error"]
