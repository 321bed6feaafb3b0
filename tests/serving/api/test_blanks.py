"""Texts of a pod whose tokenizer takes a text's first blank away and knows bytes, as those of Llama 2 and Mistral."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serving.pod_process import PodProcess
from tests.serving.tiny_model import make_blank_tokenizer

PROMPT = "the capital of France is"
ANSWER = " Paris, 9 €\n and  Rome"
BOUND = {"guided_choice": [ANSWER], "max_tokens": 80}
"""To words of a random model's own choice: which tokens they are made of is left to it."""


@pytest.fixture(scope="module")
def pod(blank_pod: PodProcess) -> PodProcess:
    return blank_pod


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_blank_tokenizer()


def complete(pod: PodProcess, **body: object) -> Any:
    """The choices of a completion, streamed as it is whole."""
    whole = pod.http.post("/v1/completions", json={"prompt": PROMPT, **body})
    assert whole.status_code == 200, whole.text
    streamed = pod.http.post("/v1/completions", json={"prompt": PROMPT, **body, "stream": True})
    lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    choices = whole.json()["choices"]
    parts = [json.loads(line)["choices"][0] for line in lines[:-1]]
    for choice in choices:
        own = [part for part in parts if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        for name in ("tokens", "text_offset") if choice["logprobs"] else ():
            assert [item for part in own for item in part["logprobs"][name]] == choice["logprobs"][name]
    return choices


def check_logprobs(choice: Any) -> None:
    """Tokens join to the text, and stand where they are told to stand."""
    text, logprobs = choice["text"], choice["logprobs"]
    assert "".join(logprobs["tokens"]) == text
    places = zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
    assert all(text[offset : offset + len(token)] == token for token, offset in places)


def test_a_completion_begins_with_its_blank(pod: PodProcess) -> None:
    (choice,) = complete(pod, **BOUND)
    assert choice["text"] == ANSWER


def test_an_echoed_prompt_and_its_answer_are_one_text(pod: PodProcess) -> None:
    (choice,) = complete(pod, **BOUND, echo=True)
    assert choice["text"] == PROMPT + ANSWER


@pytest.mark.parametrize("echo", [False, True])
def test_tokens_join_to_the_text_and_stand_where_they_are(pod: PodProcess, echo: bool) -> None:
    (choice,) = complete(pod, **BOUND, echo=echo, logprobs=3)
    assert choice["text"] == (PROMPT + ANSWER if echo else ANSWER)
    check_logprobs(choice)


def test_each_of_several_answers_has_the_prompt_before_it(pod: PodProcess) -> None:
    asked = {**BOUND, "guided_choice": [ANSWER, " Rome"], "temperature": 1, "seed": 4}
    choices = complete(pod, **asked, echo=True, logprobs=1, n=3, prompt=[PROMPT, f"{PROMPT} not"])
    assert len(choices) == 6
    for choice in choices:
        check_logprobs(choice)
        assert choice["text"].startswith(PROMPT)


def test_a_message_keeps_its_blanks_too(pod: PodProcess) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], **BOUND, "logprobs": True, "top_logprobs": 2}
    choice = pod.http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"] == ANSWER
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == ANSWER
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == ANSWER


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_the_full_text_of_the_other_dialect_is_one_text(pod: PodProcess, tokenizer: Any, path: str) -> None:
    bound = {"type": "regex", "regex": " Paris, [0-9] [€é日]\n"}
    parameters = {"max_new_tokens": 40, "return_full_text": True, "details": True, "response_format": bound}
    answer = pod.http.post(path, json={"inputs": PROMPT, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    if path == "/generate":
        body = answer.json()
        tokens = body["details"]["tokens"]
    else:
        events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
        body, tokens = events[-1], [event["token"] for event in events]
    assert body["generated_text"].startswith(f"{PROMPT} Paris, ")
    assert PROMPT + "".join(token["text"] for token in tokens) == body["generated_text"]
    written = [token["id"] for token in tokens]
    whole = tokenizer.decode([*tokenizer(PROMPT).input_ids, *written], skip_special_tokens=True)
    assert whole == body["generated_text"]


def test_details_of_the_other_dialect_keep_blanks(pod: PodProcess, tokenizer: Any) -> None:
    parameters = {"max_new_tokens": 12, "details": True, "decoder_input_details": True, "return_k_alternatives": 20}
    answer = pod.http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json()
    details = answer["details"]
    assert "".join(token["text"] for token in details["prefill"]) == PROMPT
    assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
    for token in details["tokens"]:
        for other in token["alternative_tokens"]:
            name = tokenizer.convert_ids_to_tokens(other["id"])
            assert name.startswith("<") or other["text"] == name.replace("▁", " ")


@pytest.mark.parametrize(
    ("stop", "text"), [("€", " Paris, 9 "), (" and", " Paris, 9 €\n"), (" Par", ""), ("is", " Par")]
)
def test_stop_strings_see_the_blanks(pod: PodProcess, stop: str, text: str) -> None:
    (choice,) = complete(pod, **BOUND, stop=[stop])
    assert (choice["text"], choice["finish_reason"]) == (text, "stop")


def test_a_prompt_that_breaks_off_inside_a_character_is_gone_on_with(pod: PodProcess, tokenizer: Any) -> None:
    names = ["<s>", "▁is", "<0xE2>", "<0x82>"]
    prompt = [tokenizer.convert_tokens_to_ids(name) for name in names]
    last = str(tokenizer.convert_tokens_to_ids("<0xAC>"))
    (choice,) = complete(pod, prompt=prompt, max_tokens=1, logit_bias={last: 100}, logprobs=1)
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("€", ["€"])


def test_tokens_of_a_long_text_are_all_there(pod: PodProcess) -> None:
    text = "q7" * 750
    tokens = pod.http.post("/tokenize", json={"inputs": text}).json()
    assert len(tokens) > 1000
    assert "".join(token["text"] for token in tokens).endswith(text[-100:])
    assert tokens[-1]["stop"] == len(text)
