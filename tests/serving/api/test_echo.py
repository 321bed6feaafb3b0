"""Prompts that are given back, with what the model thinks of them: before several answers, and before none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving.pod_process import PodProcess


@pytest.fixture(scope="module")
def client(blank_pod: PodProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{blank_pod.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_answers_to_one_prompt_show_the_same_scores_of_it(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "", "prompt": ["the cat sat", "a dog"], "max_tokens": 4, "logprobs": 2, "temperature": 1.5}
    asked |= {"seed": 3, "echo": True, "extra_body": {"ignore_eos": True}}
    (alone, _) = (item.logprobs for item in client.completions.create(**asked).choices)
    scored: dict[int, list[float]] = defaultdict(list)
    for part in (
        client.completions.create(n=3, stream=True, **asked) if stream else [client.completions.create(n=3, **asked)]
    ):
        for choice in part.choices:
            scored[choice.index] += choice.logprobs.token_logprobs if choice.logprobs else []
    num_prompt = len(alone.token_logprobs) - 4
    assert sorted(scored) == list(range(6))
    for index in range(3):
        assert scored[index][:num_prompt] == scored[0][:num_prompt]
        assert scored[index][1:num_prompt] == pytest.approx(alone.token_logprobs[1:num_prompt], abs=0.05)
        assert len(scored[index]) == num_prompt + 4
    best = client.completions.create(**{**asked, "prompt": "the cat sat", "n": 2}, best_of=6)
    for choice in best.choices:
        assert choice.logprobs is not None
        assert (choice.logprobs.token_logprobs or [])[1:num_prompt] == pytest.approx(scored[0][1:num_prompt], abs=0.05)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["the cat sat", "the capital of France is Rome " * 100], ids=["one-step", "steps"])
def test_a_text_is_scored_without_an_answer(client: openai.OpenAI, text: str, stream: bool) -> None:
    asked: Any = {"model": "", "prompt": text, "logprobs": 2, "echo": True}
    longer = client.completions.create(max_tokens=1, **asked).choices[0]
    if stream:
        *chunks, last = client.completions.create(
            max_tokens=0, stream=True, stream_options={"include_usage": True}, **asked
        )
        ((scored,), usage) = ([choice for chunk in chunks for choice in chunk.choices], last.usage)
    else:
        answer = client.completions.create(max_tokens=0, **asked)
        (scored,), usage = answer.choices, answer.usage
    assert (scored.text, scored.finish_reason) == (text, "length")
    assert scored.logprobs is not None
    assert longer.logprobs is not None
    assert scored.logprobs.tokens == (longer.logprobs.tokens or [])[:-1]
    assert scored.logprobs.text_offset == (longer.logprobs.text_offset or [])[:-1]
    expected = (longer.logprobs.token_logprobs or [])[1:-1]
    assert (scored.logprobs.token_logprobs or [])[1:] == pytest.approx(expected, abs=0.05)
    assert usage is not None
    assert (usage.completion_tokens, usage.prompt_tokens) == (0, len(scored.logprobs.tokens or []))


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        ("completions", {"prompt": [5] * 1025, "max_tokens": 0}, 1024),
        ("completions", {"prompt": [5] * 1025, "max_tokens": 1}, 1023),
        ("completions", {"prompt": [5] * 1024}, 1023),
        ("embeddings", {"input": [5] * 1025}, 1024),
    ],
)
def test_a_prompt_that_is_too_long_is_told_the_limit(
    blank_pod: PodProcess, path: str, body: dict[str, object], limit: int
) -> None:
    response = blank_pod.http.post(f"/v1/{path}", json={"model": "", **body})
    assert response.status_code == 413
    assert f"tokens, the limit is {limit}: shorten it" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_are_an_empty_answer(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "", "prompt": [[5] * 3, [5] * 1024], "max_tokens": 0, "stream": stream}
    answered = client.completions.create(**asked)
    choices = [choice for part in answered for choice in part.choices] if stream else answered.choices
    assert sorted((choice.index, choice.text, choice.finish_reason) for choice in choices) == [
        (0, "", "length"),
        (1, "", "length"),
    ]
