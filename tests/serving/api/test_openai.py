"""The OpenAI dialect against a running pod."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import openai
import pytest

from tests.serving.conftest import SourceFactory
from tests.serving.pod_process import ADMIN_TOKEN, PodProcess
from tests.serving.registered_adapter import PROMPT, Registered, RegistryHand

QUESTION = {"question": "the dog"}


@pytest.fixture(scope="module")
def adapter(pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> Registered:
    """An adapter that the pod serves under its bare name."""
    registered = registry.register("dialects", tiny_adapter(1))
    registry.promote(registered)
    pod.wait_serving("dialects", 1)
    return registered


@pytest.fixture(scope="module")
def chat_adapter(pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> Registered:
    """An adapter whose template is the user's turn of a chat."""
    block = replace(PROMPT, template="{{ question }}?", chat=True)
    registered = registry.register("chatty", replace(tiny_adapter(1), prompt=block))
    registry.promote(registered)
    pod.wait_serving("chatty", 1)
    return registered


def _post(pod: PodProcess, path: str, **body: object) -> Any:
    response = pod.http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def _events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_completion_names_its_adapter_and_counts_its_tokens(pod: PodProcess, adapter: Registered) -> None:
    response = pod.http.post("/v1/completions", json={"model": "dialects", "prompt": "the cat", "max_tokens": 5})
    answer = response.json()
    assert response.headers["x-lorafleet-adapter"] == adapter.label
    assert response.headers["x-lorafleet-digest"] == adapter.digest
    assert answer["object"] == "text_completion"
    assert answer["model"] == "dialects"
    assert answer["choices"][0]["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


def test_a_stream_adds_up_to_the_whole_answer(pod: PodProcess, adapter: Registered) -> None:
    body = {"model": "dialects", "prompt": "the cat", "max_tokens": 30}
    whole = _post(pod, "/v1/completions", **body)
    response = pod.http.post(
        "/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    *chunks, last = _events(response.text)
    assert response.headers["x-lorafleet-digest"] == adapter.digest
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_that_spans_tokens_ends_the_answer_before_it(
    pod: PodProcess, adapter: Registered, stream: bool
) -> None:
    body = {"model": "dialects", "prompt": "the cat", "max_tokens": 40}
    whole = _post(pod, "/v1/completions", **body)["choices"][0]["text"]
    stop = whole[7:13]
    expected = whole[: whole.index(stop)]
    response = pod.http.post("/v1/completions", json={**body, "stop": [stop, "never"], "stream": stream})
    if stream:
        choices = [chunk["choices"][0] for chunk in _events(response.text)]
        assert "".join(choice["text"] for choice in choices) == expected
        assert choices[-1]["finish_reason"] == "stop"
    else:
        choice = response.json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (expected, "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_token_ends_the_answer_before_it(pod: PodProcess, adapter: Registered, stream: bool) -> None:
    parameters = {"adapter_id": "dialects", "max_new_tokens": 12, "details": True}
    told = _post(pod, "/generate", inputs="the cat", parameters=parameters)["details"]["tokens"]
    token_ids, texts = [token["id"] for token in told], [token["text"] for token in told]

    def ask(*stops: int) -> tuple[str, str]:
        body = {"model": "dialects", "prompt": "the cat", "max_tokens": 12, "stop_token_ids": stops, "stream": stream}
        answer = pod.http.post("/v1/completions", json=body)
        choices = [part["choices"][0] for part in (_events(answer.text) if stream else [answer.json()])]
        return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]

    never = min(set(range(3, 160)).difference(token_ids))
    assert ask(never) == ("".join(texts), "length")
    assert len(set(token_ids)) > 3, "the answer says too little to be ended in several places"
    for token_id in set(token_ids):
        assert ask(never, token_id) == ("".join(texts[: token_ids.index(token_id)]), "stop")


def test_variables_fill_the_adapters_own_template(pod: PodProcess, adapter: Registered) -> None:
    filled = _post(pod, "/v1/completions", model="dialects", variables=QUESTION)
    prompt = PROMPT.render(QUESTION)
    by_hand = _post(
        pod,
        "/v1/completions",
        model="dialects",
        prompt=prompt,
        max_tokens=PROMPT.max_new_tokens,
        stop=list(PROMPT.stop),
    )
    assert filled["choices"] == by_hand["choices"]
    assert filled["usage"] == by_hand["usage"]


def test_variables_of_a_chat_template_are_the_users_turn(pod: PodProcess, chat_adapter: Registered) -> None:
    filled = _post(pod, "/v1/chat/completions", model="chatty", variables=QUESTION)
    messages = [{"role": "user", "content": "the dog?"}]
    by_hand = _post(
        pod,
        "/v1/chat/completions",
        model="chatty",
        messages=messages,
        max_completion_tokens=PROMPT.max_new_tokens,
        stop=list(PROMPT.stop),
    )
    assert filled["choices"] == by_hand["choices"]


@pytest.mark.parametrize(
    ("model", "variables", "said"),
    [("dialects", {}, "missing ['question']"), ("dialects", {**QUESTION, "x": 1}, "unknown ['x']"), ("", {}, "base")],
)
def test_variables_that_do_not_fit_are_refused(
    pod: PodProcess, adapter: Registered, model: str, variables: dict[str, object], said: str
) -> None:
    response = pod.http.post("/v1/completions", json={"model": model, "variables": variables})
    assert response.status_code == 422
    assert said in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "variables"


def test_several_prompts_are_answered_in_order(pod: PodProcess) -> None:
    together = _post(pod, "/v1/completions", prompt=["the cat", "the dog"], max_tokens=6)
    alone = [_post(pod, "/v1/completions", prompt=prompt, max_tokens=6) for prompt in ("the cat", "the dog")]
    assert [choice["text"] for choice in together["choices"]] == [item["choices"][0]["text"] for item in alone]
    assert [choice["index"] for choice in together["choices"]] == [0, 1]


def test_models_give_parent_root_version_and_digest(pod: PodProcess, adapter: Registered) -> None:
    models = {item["id"]: item for item in pod.client.models()}
    assert models["tiny-llama"]["parent"] is None
    entry = models["dialects"]
    assert (entry["parent"], entry["root"]) == ("tiny-llama", adapter.address)
    assert (entry["version"], entry["digest"], entry["state"]) == (1, adapter.digest, "ready")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nobody", "prompt": "x"}, 404, None),
        ({"model": "not a name!", "prompt": "x"}, 404, None),
        ({"model": "dialects:1", "prompt": "x"}, 403, None),
        ({"model": "s3://bucket/key", "prompt": "x"}, 403, None),
        ({"prompt": "x" * 100_000}, 413, "prompt"),
        ({"prompt": "x " * 300}, 413, "prompt"),
        ({"prompt": "x", "max_tokens": 100_000}, 422, "max_tokens"),
        ({"prompt": "x", "max_tokens": -1}, 422, "max_tokens"),
        ({"prompt": "x", "max_tokens": 0, "min_tokens": 1}, 422, "min_tokens"),
        ({"prompt": "x " * 300, "max_tokens": 0}, 413, "prompt"),
        ({"prompt": [[1] * 60] * 64, "max_tokens": 1, "echo": True, "logprobs": 20}, 422, "logprobs"),
        ({"prompt": [[1] * 60] * 64, "max_tokens": 1, "echo": True, "logprobs": 20, "stream": True}, 422, "logprobs"),
        ({"prompt": "x", "temperature": -1}, 422, "temperature"),
        ({"prompt": "x", "top_p": 0}, 422, "top_p"),
        ({"prompt": "x", "unheard_of": 1}, 422, "unheard_of"),
        ({"prompt": "x", "n": 17}, 422, "n"),
        ({"prompt": "x", "n": 2, "best_of": 1}, 422, "best_of"),
        ({"prompt": "x", "n": 1, "best_of": 2, "stream": True}, 422, "best_of"),
        ({"prompt": "x", "n": "2"}, 422, "n"),
        ({"prompt": "x", "echo": 1}, 422, "echo"),
        ({"prompt": "x", "logprobs": 21}, 422, "logprobs"),
        ({"prompt": "x", "min_p": 1.5}, 422, "min_p"),
        ({"prompt": "x", "typical_p": 0}, 422, "typical_p"),
        ({"prompt": "x", "frequency_penalty": 2.1}, 422, "frequency_penalty"),
        ({"prompt": "x", "presence_penalty": -3}, 422, "presence_penalty"),
        ({"prompt": "x", "logit_bias": {"x": 1}}, 422, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": 101}}, 422, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"100000": 1}}, 422, "logit_bias"),
        ({"prompt": "x", "logit_bias": {str(token_id): 1 for token_id in range(301)}}, 422, "logit_bias"),
        ({"prompt": "x", "metadata": {str(number): "x" for number in range(101)}}, 422, "metadata"),
        ({"prompt": "x", "max_tokens": 4, "min_tokens": 5}, 422, "min_tokens"),
        ({"prompt": "x", "stop": ["a"] * 17}, 422, "stop"),
        ({"prompt": ""}, 422, "prompt"),
        ({"prompt": []}, 422, "prompt"),
        ({"prompt": [100_000]}, 422, "prompt"),
        ({}, 422, "prompt"),
        ({"model": "a:" + "9" * 5000, "prompt": "x"}, 404, None),
        ({"prompt": [1.5] * 1000}, 422, "prompt"),
        ({"prompt": [[1], ["x"]]}, 422, "prompt"),
        ({"prompt": "x", "stop": ["a" * 501]}, 422, "stop"),
        ({"prompt": "x", "stop": ""}, 422, "stop"),
        ({"prompt": "x", **{f"field-{number}": 1 for number in range(101)}}, 422, None),
        ({"prompt": "x", "model": "dialects", "variables": {"question": "x"}}, 422, "prompt"),
        ({"model": "dialects", "variables": {"question": "x" * 100_000}}, 413, "variables"),
        ({"prompt": "x", "variables": {}}, 422, "prompt"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(
    pod: PodProcess, adapter: Registered, body: dict[str, object], status: int, param: str | None
) -> None:
    response = pod.http.post("/v1/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    assert set(error) == {"message", "type", "param", "code"}


def test_several_answers_share_a_prompt_and_have_streams_of_their_own(pod: PodProcess, adapter: Registered) -> None:
    asked = {"model": "dialects", "prompt": ["the cat", "a dog"], "max_tokens": 8, "temperature": 2.0}
    asked |= {"seed": 5, "ignore_eos": True}
    both = _post(pod, "/v1/completions", **asked, n=3)
    texts = [choice["text"] for choice in both["choices"]]
    assert [choice["index"] for choice in both["choices"]] == list(range(6))
    assert len(set(texts)) > 2
    alone = _post(pod, "/v1/completions", **asked)
    assert [texts[0], texts[3]] == [choice["text"] for choice in alone["choices"]]
    assert both["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert both["usage"]["completion_tokens"] == 48
    messages = [{"role": "user", "content": "the cat"}]
    chat = _post(pod, "/v1/chat/completions", messages=messages, max_tokens=4, n=2)
    assert [choice["message"]["content"] for choice in chat["choices"]] == [
        chat["choices"][0]["message"]["content"]
    ] * 2


def test_log_probabilities_of_a_completion_stand_side_by_side(pod: PodProcess, adapter: Registered) -> None:
    asked = {"model": "dialects", "prompt": "the cat", "max_tokens": 5, "logprobs": 3}
    choice = _post(pod, "/v1/completions", **asked)["choices"][0]
    logprobs = choice["logprobs"]
    assert {len(values) for values in logprobs.values()} == {5}
    assert all(len(top) == 3 for top in logprobs["top_logprobs"])
    # Greedy: the token is its own likeliest alternative.
    assert logprobs["token_logprobs"] == [max(top.values()) for top in logprobs["top_logprobs"]]
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert logprobs["text_offset"][0] == 0
    with pod.http.stream("POST", "/v1/completions", json={**asked, "stream": True}) as response:
        parts = [event["choices"][0]["logprobs"] for event in _events(response.read().decode())]
    streamed = [value for part in parts if part for value in part["token_logprobs"]]
    assert streamed == pytest.approx(logprobs["token_logprobs"], abs=1e-4)


def test_log_probabilities_of_a_message_are_one_object_each(pod: PodProcess, adapter: Registered) -> None:
    client = openai.OpenAI(base_url=f"{pod.url}/v1", api_key="none")
    answer = client.chat.completions.create(
        model="dialects", messages=[{"role": "user", "content": "x"}], max_tokens=4, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 2
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert bytes(entry.bytes or []).decode() == entry.token


def test_prompts_that_may_be_scored_together_are(pod: PodProcess) -> None:
    asked = {"prompt": [[1] * 240] * 13, "max_tokens": 0, "echo": True, "logprobs": 20}
    choices = _post(pod, "/v1/completions", **asked)["choices"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [240] * 13
    refused = pod.http.post("/v1/completions", json={**asked, "prompt": [[1] * 250] * 13}).json()["error"]
    told = (
        "logprobs asks for 68250 log-probabilities of prompts, a request may have 65536: send shorter or fewer prompts"
    )
    assert refused["message"].startswith(told)


def test_bias_and_least_length_reach_the_engine(pod: PodProcess, adapter: Registered) -> None:
    asked = {"model": "dialects", "prompt": "the cat", "max_tokens": 3, "logprobs": 0}
    plain = _post(pod, "/v1/completions", **asked)["choices"][0]["logprobs"]["tokens"]
    biased = _post(pod, "/v1/completions", **asked, logit_bias={"7": 100})["choices"][0]["logprobs"]["tokens"]
    assert len(set(biased)) == 1
    assert biased != plain
    ending = _post(pod, "/v1/completions", **asked, logit_bias={"2": 100}, min_tokens=2)
    assert ending["usage"]["completion_tokens"] in (2, 3)


def test_an_explicit_version_is_the_administrators(pod: PodProcess, adapter: Registered) -> None:
    body = {"model": "dialects:1", "prompt": "the", "max_tokens": 2}
    allowed = pod.http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    assert allowed.status_code == 200
    assert allowed.headers["x-lorafleet-adapter"] == adapter.label


def test_a_client_that_leaves_ends_all_answers_of_its_request(pod: PodProcess, adapter: Registered) -> None:
    num_clients, num_answers, max_tokens = 4, 8, 240
    body = {"model": "dialects", "prompt": "the", "n": num_answers, "max_tokens": max_tokens, "min_tokens": max_tokens}
    generated, ended_well = pod.metric("vllm:generation_tokens_total"), pod.metric("vllm:request_success_total")

    def idle() -> bool | None:
        report = pod.version("dialects", 1)
        held = [pod.metric(f"vllm:{name}") for name in ("num_requests_running", "kv_cache_usage_perc")]
        return True if report is not None and report.in_flight == 0 and not any(held) else None

    for _ in range(num_clients):
        with pod.http.stream("POST", "/v1/completions", json={**body, "temperature": 1.0, "stream": True}) as response:
            next(response.iter_lines())
        pod.wait_for(idle, "the answers to be given up, with their blocks")
    assert pod.metric("vllm:request_success_total") == ended_well
    assert pod.metric("vllm:generation_tokens_total") - generated < num_clients * num_answers * max_tokens / 2


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"messages": []}, 422, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 100_000}]}, 413, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, 422, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 0}, 422, "max_completion_tokens"),
    ],
)
def test_bad_conversations_are_told_what_is_wrong(
    pod: PodProcess, body: dict[str, object], status: int, param: str | None
) -> None:
    response = pod.http.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": ', "not JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"prompt": ' + "[" * 700 + "1" + "]" * 700 + "}", "nested too deeply"),
        ('{"prompt": "\\ud800"}', "not valid Unicode"),
        ('{"model": "dialects", "variables": {"question": "\\ud800"}}', "not valid Unicode"),
    ],
)
def test_a_body_that_is_no_request_is_invalid(pod: PodProcess, adapter: Registered, text: str, said: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = pod.http.post("/v1/completions", content=text.encode(), headers=headers)
    assert response.status_code == 422
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "text", "status"),
    [
        ("/v1/completions", '{"model": "\\ud800@!", "prompt": "x"}', 404),
        ("/v1/completions", '{"model": "\\ud800@!", "prompt": "x", "stream": true}', 404),
        ("/v1/completions", '{"model": "s3://\\ud800", "prompt": "x"}', 403),
        ("/v1/completions", '{"prompt": "x", "response_format": {"type": "\\ud800"}}', 422),
        ("/v1/completions", '{"prompt": "x", "\\ud800": 1}', 422),
        (
            "/v1/chat/completions",
            '{"model": "\\ud800@!", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}',
            404,
        ),
        ("/v1/chat/completions", '{"messages": [{"role": "\\ud800", "content": "x"}]}', 422),
        ("/v1/embeddings", '{"model": "\\ud800@!", "input": "x"}', 404),
    ],
)
def test_half_a_character_is_answered_like_any_other_text(pod: PodProcess, path: str, text: str, status: int) -> None:
    response = pod.http.post(path, content=text.encode(), headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == status


def test_a_wrong_method_is_told_the_right_one(pod: PodProcess) -> None:
    response = pod.http.get("/v1/completions")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
