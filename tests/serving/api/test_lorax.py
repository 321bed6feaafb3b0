"""The LoRAX dialect against a running pod, in the shapes that its client reads."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serving.conftest import SourceFactory
from tests.serving.pod_process import PodProcess
from tests.serving.random_model import quiet_peft
from tests.serving.registered_adapter import PROMPT, AdapterSource, Registered, RegistryHand

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
        ({"best_of": 2, "do_sample": True, "seed": 1}, 422, "validation"),
        ({"adapter_source": "ftp"}, 422, "validation"),
        ({"adapter_id": "lorax-way:1"}, 403, "forbidden"),
        ({"merged_adapters": {"ids": ["nobody"], "weights": [1]}}, 404, "not_found"),
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


def test_the_base_model_by_its_id_is_no_adapter(pod: PodProcess) -> None:
    asked = {"inputs": "the cat", "parameters": {"adapter_id": "tiny-llama", "max_new_tokens": 2}}
    answer = pod.http.post("/generate", json=asked)
    assert answer.status_code == 200
    assert not {"x-adapter-id", "x-adapter-source"} & set(answer.headers)


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
        ({"best_of": 17, "do_sample": True}, "best_of: Input should be less than or equal to 16"),
        ({"watermark": True}, "watermark"),
        ({"truncate": 100_000}, "truncate is 100000, it must be 1 to 255"),
        ({"return_k_alternatives": 21}, "return_k_alternatives"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"variables": {}, "apply_chat_template": True}, "apply_chat_template"),
        ({"adapter_id": "a", "merged_adapters": {"ids": ["b"], "weights": [1]}}, "either adapter_id or merged"),
        ({"merged_adapters": {"ids": ["a", "b"], "weights": [1]}}, "ids holds 2 adapters and weights 1"),
        (
            {"merged_adapters": {"ids": ["a"] * 17, "weights": [1] * 17}},
            "merged_adapters.ids: List should have at most 16",
        ),
        ({"merged_adapters": {"ids": ["tiny-llama"], "weights": [1]}}, "names the base model"),
        ({"merged_adapters": {"ids": ["a"], "weights": [1], "merge_strategy": "svd"}}, "merge_strategy"),
        ({"merged_adapters": {"ids": ["a"], "weights": [1], "density": 2}}, "density"),
        ({"response_format": {"type": "regex"}}, "response_format: regex goes with type regex"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format: schema is for json_object"),
    ],
)
def test_bad_parameters_are_told_in_this_dialects_envelope(
    pod: PodProcess, parameters: dict[str, object], said: str
) -> None:
    for path in ("/generate", "/generate_stream"):
        response = pod.http.post(path, json={"inputs": "the cat", "parameters": parameters})
        assert response.status_code == (404 if parameters.get("adapter_id") == "nobody" else 422)
        assert set(response.json()) == {"error", "error_type"}
        assert said in response.json()["error"]


@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream"])
@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('{"inputs": "x", "parameters": {"adapter_id": "\\ud800@!"}}', 404),
        ('{"inputs": "x", "parameters": {"merged_adapters": {"ids": ["\\ud800@!"], "weights": [1]}}}', 404),
        ('{"inputs": "x", "parameters": {"adapter_source": "\\ud800"}}', 422),
        (
            '{"inputs": "\\ud800", "parameters": '
            '{"adapter_id": "lorax-way", "variables": {"question": "x"}, "return_full_text": true}}',
            422,
        ),
    ],
)
def test_half_a_character_is_answered_like_any_other_text(
    pod: PodProcess, adapter: Registered, path: str, text: str, status: int
) -> None:
    response = pod.http.post(path, content=text.encode(), headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_type"}


def test_a_stream_refuses_what_it_cannot_give(pod: PodProcess) -> None:
    for parameters, said in (
        ({"best_of": 2, "do_sample": True}, "a stream takes one answer"),
        ({"decoder_input_details": True}, "decoder_input_details is not given in a stream"),
    ):
        response = pod.http.post("/generate_stream", json={"inputs": "the cat", "parameters": parameters})
        assert response.status_code == 422
        assert said in response.json()["error"]


@pytest.mark.parametrize("path", ["/classify", "/classify_batch"])
def test_classify_is_refused_by_name(pod: PodProcess, path: str) -> None:
    response = pod.http.post(path, json={"inputs": ["x"], "parameters": None, "stream": False})
    assert response.status_code == 422
    assert "classify is not served" in response.json()["error"]


def test_details_hold_the_prompt_as_transformers_scores_it(
    pod: PodProcess, adapter: Registered, tiny_adapter: SourceFactory
) -> None:
    model, tokenizer = _peft_model(tiny_adapter(1))
    text = "the cat sat on the mat and the dog"
    parameters = {"adapter_id": "lorax-way", "max_new_tokens": 2, "decoder_input_details": True, "details": True}
    for _ in range(2):  # The second time the prefix cache knows the prompt.
        details = pod.http.post("/generate", json={"inputs": text, "parameters": parameters}).json()["details"]
        prefill = details["prefill"]
        ids = tokenizer(text).input_ids
        with torch.inference_mode():
            scores = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
        assert [token["id"] for token in prefill] == ids
        assert "".join(token["text"] for token in prefill) == text
        assert prefill[0]["logprob"] is None
        expected = [float(scores[place, token]) for place, token in enumerate(ids[1:])]
        assert [token["logprob"] for token in prefill[1:]] == pytest.approx(expected, abs=0.2)
        assert details["prompt_tokens"] == len(ids)


def test_the_likeliest_of_several_answers_is_given(pod: PodProcess) -> None:
    parameters = {"best_of": 4, "do_sample": True, "details": True, "max_new_tokens": 5, "decoder_input_details": True}
    answer = pod.http.post("/generate", json={"inputs": "the cat", "parameters": parameters}).json()
    best, others = answer["details"], answer["details"]["best_of_sequences"]
    means = [sum(token["logprob"] for token in item["tokens"]) / len(item["tokens"]) for item in (best, *others)]
    assert len(others) == 3
    assert means[0] == max(means)
    assert len({item["seed"] for item in (best, *others)}) == 4
    assert all(item["prefill"] == best["prefill"] != [] for item in others)
    for item in (best | {"generated_text": answer["generated_text"]}, *others):
        again = {"do_sample": True, "max_new_tokens": 5, "seed": item["seed"]}
        repeated = pod.http.post("/generate", json={"inputs": "the cat", "parameters": again}).json()
        assert repeated["generated_text"] == item["generated_text"]


def test_the_seed_is_told_where_one_was_used(pod: PodProcess) -> None:
    for parameters, told in (({"do_sample": True}, True), ({"temperature": 0.0}, False), ({}, False)):
        body = {"inputs": "the cat", "parameters": {**parameters, "details": True, "max_new_tokens": 2}}
        assert (pod.http.post("/generate", json=body).json()["details"]["seed"] is not None) is told


def test_headers_tell_what_was_computed_and_where_the_time_went(pod: PodProcess, adapter: Registered) -> None:
    parameters = {"adapter_id": "lorax-way", "adapter_source": "HUB", "max_new_tokens": 4}
    headers = pod.http.post("/generate", json={"inputs": "the cat", "parameters": parameters}).headers
    assert headers["x-model-id"] == "tiny-llama"
    assert (headers["x-adapter-id"], headers["x-adapter-source"]) == ("lorax-way", "mlflow")
    assert (headers["x-compute-type"], headers["x-compute-characters"]) == ("cpu", "7")
    assert (headers["x-generated-tokens"], headers["x-skipped-tokens"]) == ("4", "0")
    assert int(headers["x-total-tokens"]) == int(headers["x-prompt-tokens"]) + 4
    names = ("validation-time", "queue-time", "inference-time", "time-per-token", "time-to-first-token")
    times = {name: float(headers[f"x-{name}"]) for name in (*names, "total-time", "compute-time")}
    assert all(value >= 0 for value in times.values())
    parts = times["validation-time"] + times["queue-time"] + times["inference-time"]
    assert parts == pytest.approx(times["total-time"], abs=0.01)
    assert times["time-per-token"] == pytest.approx(times["inference-time"] / 4, abs=0.01)
    stream = pod.http.post("/generate_stream", json={"inputs": "the cat", "parameters": parameters}).headers
    assert {"x-compute-type", "x-compute-characters", "x-model-id", "x-adapter-id"} <= set(stream)
    assert "x-total-time" not in stream


def test_the_chat_template_makes_inputs_the_users_turn(pod: PodProcess) -> None:
    templated = {"apply_chat_template": True, "max_new_tokens": 6}
    answer = pod.http.post("/generate", json={"inputs": "the cat", "parameters": templated}).json()
    plain = pod.http.post(
        "/generate", json={"inputs": "<user>the cat\n<assistant>", "parameters": {"max_new_tokens": 6}}
    )
    assert answer == plain.json()


def test_a_response_format_binds_the_answer(pod: PodProcess, adapter: Registered) -> None:
    for wanted, fits in (
        ({"type": "json_object", "schema": {"enum": ["a cat", "a dog"]}}, r'"a (cat|dog)"'),
        ({"type": "json_schema", "schema": {"enum": [7]}}, "7"),
        ({"type": "regex", "regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
        ({"type": "text"}, r"(?s).{1,}"),
    ):
        parameters = {"adapter_id": "lorax-way", "response_format": wanted, "max_new_tokens": 30, "details": True}
        answer = pod.http.post("/generate", json={"inputs": "the cat", "parameters": parameters}).json()
        assert re.fullmatch(fits, answer["generated_text"]), answer
        reason = answer["details"]["finish_reason"]
        assert reason == ("length" if wanted["type"] == "text" else "eos_token")


def test_truncation_keeps_the_end_of_the_prompt(pod: PodProcess) -> None:
    parameters = {"truncate": 2, "max_new_tokens": 1, "decoder_input_details": True}
    answer = pod.http.post("/invocations", json={"inputs": "the cat sat", "parameters": parameters}).json()
    tokens = pod.http.post("/tokenize", json={"inputs": "the cat sat"}).json()
    assert [item["id"] for item in answer[0]["details"]["prefill"]] == [item["id"] for item in tokens[-2:]]


def _peft_model(source: AdapterSource) -> tuple[Any, Any]:
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(source.model, dtype=torch.float32)
    with quiet_peft():
        return PeftModel.from_pretrained(base, source.folder).eval(), AutoTokenizer.from_pretrained(source.model)
