"""OpenAI's own client, unmodified, against a running pod: everything it can ask, sync and async, and every error."""

from __future__ import annotations

import hashlib
import json
import signal
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from operator import attrgetter
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from tests.services import RunningMLflow
from tests.serving.api.openai_clients import open_clients
from tests.serving.pod_process import ADMIN_TOKEN, PodProcess, start_pod
from tests.serving.registered_adapter import PROMPT, AdapterSource, RegistryHand
from tests.serving.tiny_model import make_tiny_adapter, make_tiny_model

KEY = "key-of-the-clients"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "the cat"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "additionalProperties": False}}},
]
OWN_TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}|{{ m.role }}|{{ m.content }}{% endfor %}|assistant|"
)
UNHEARD_OF_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
ERRORS: dict[int, type[openai.APIStatusError]] = {
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    413: openai.APIStatusError,
    422: openai.UnprocessableEntityError,
}
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("completions.create", {"prompt": "x"}),
    ("completions.create", {"prompt": "x", "stream": True}),
    ("chat.completions.create", {"messages": MESSAGES}),
    ("chat.completions.create", {"messages": MESSAGES, "stream": True}),
    ("embeddings.create", {"input": "x"}),
]


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)


@pytest.fixture(scope="module")
def pod(
    registry: RegistryHand, mlflow_server: RunningMLflow, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PodProcess]:
    """A pod that wants a key, whose model takes longer prompts, with an adapter that ships its own chat template."""
    root = tmp_path_factory.mktemp("long")
    model = make_tiny_model(root / "long-llama", seed=1, max_positions=1024)
    source = AdapterSource(model, make_tiny_adapter(model, root / "adapter", 1), chat_template=OWN_TEMPLATE)
    chatty = replace(source, prompt=replace(PROMPT, template="{{ question }}", chat=True))
    keys = root / "keys.json"
    keys.write_text(json.dumps({"keys": [{"name": "clients", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]}))
    flags = ("--poll-interval", "1.0", "--max-waiting", "8", "--api-keys", str(keys))
    with ExitStack() as running:
        pod = start_pod(root, model, mlflow_server, running, *flags)
        registered = registry.register("own-template", chatty)
        registry.promote(registered)
        pod.wait_ready()
        pod.wait_serving("own-template", 1)
        pod.http.headers["Authorization"] = f"Bearer {KEY}"
        yield pod


@pytest.fixture(scope="module")
def clients(pod: PodProcess) -> Iterator[dict[str, openai.OpenAI]]:
    with open_clients(pod.url, KEY) as clients:
        yield clients


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, clients: dict[str, openai.OpenAI]) -> openai.OpenAI:
    return clients[request.param]


def test_every_client_says_the_same_whole_and_streamed(clients: dict[str, openai.OpenAI]) -> None:
    asked: dict[str, Any] = {"model": "long-llama", "max_tokens": 9, "temperature": 1, "seed": 4}
    chats, texts = list[str | None](), list[str]()
    for client in clients.values():
        chats.append(client.chat.completions.create(messages=MESSAGES, **asked).choices[0].message.content)
        chat_stream = client.chat.completions.create(messages=MESSAGES, stream=True, **asked)
        chats.append("".join(chunk.choices[0].delta.content or "" for chunk in chat_stream))
        texts.append(client.completions.create(prompt="the cat", **asked).choices[0].text)
        text_stream = client.completions.create(prompt="the cat", stream=True, **asked)
        texts.append("".join(chunk.choices[0].text for chunk in text_stream))
    assert all([*chats, *texts])
    assert (chats, texts) == (chats[:1] * 4, texts[:1] * 4)


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["long-llama", "own-template"]
    model = client.models.retrieve("own-template")
    assert (model.object, model.owned_by, model.to_dict()["parent"]) == ("model", "lorafleet", "long-llama")
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.models.retrieve("nobody")


def test_vectors_are_the_same_in_either_encoding(client: openai.OpenAI) -> None:
    asked: Any = {"model": "own-template", "input": ["the cat", "a dog"]}
    packed, plain = client.embeddings.create(**asked), client.embeddings.create(**asked, encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert packed.usage == plain.usage


def test_usage_counts_what_the_prefix_cache_gave(client: openai.OpenAI) -> None:
    asked: Any = {"model": "", "prompt": "a cat and a dog " * 8, "max_tokens": 2}
    client.completions.create(**asked)
    usage = client.completions.create(**asked).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert 0 < (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens
    *_, last = client.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    assert last.usage is not None
    assert (last.choices, last.usage.total_tokens) == ([], usage.total_tokens)


def test_streamed_answers_take_turns_under_their_index(client: openai.OpenAI) -> None:
    asked: Any = {"model": "", "max_tokens": 6, "n": 3, "temperature": 1.5, "seed": 9}
    whole = client.chat.completions.create(messages=MESSAGES, **asked)
    texts: dict[int, str] = defaultdict(str)
    order: list[int] = []
    for chunk in client.chat.completions.create(messages=MESSAGES, stream=True, **asked):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        order.append(choice.index)
    assert [texts[index] for index in range(3)] == [choice.message.content for choice in whole.choices]
    assert order != sorted(order), "the answers came one after the other"


def test_fields_that_change_no_answer_are_taken(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="", messages=MESSAGES, max_tokens=4)
    dressed = client.chat.completions.create(
        model="",
        messages=[{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]}],
        max_completion_tokens=4,
        user="me",
        metadata={"run": "1"},
        store=False,
        service_tier="auto",
        safety_identifier="s",
        prompt_cache_key="k",
        modalities=["text"],
        parallel_tool_calls=True,
        response_format={"type": "text"},
        extra_body={"min_tokens": 1, "ignore_eos": False, "stop_token_ids": [], "repetition_penalty": 1.0},
    )
    assert dressed.choices[0].message.content == plain.choices[0].message.content


def test_the_likeliest_of_several_are_given(client: openai.OpenAI) -> None:
    asked: Any = {"model": "", "prompt": "the cat", "max_tokens": 5, "temperature": 1.5, "seed": 3}
    asked["extra_body"] = {"ignore_eos": True}
    made = client.completions.create(n=6, logprobs=0, **asked).choices
    best = sorted(made, key=lambda item: -sum(logprobs_of(item)) / len(logprobs_of(item)))
    given = client.completions.create(n=2, best_of=6, **asked)
    assert [choice.text for choice in given.choices] == [choice.text for choice in best[:2]]
    assert [choice.logprobs for choice in given.choices] == [None, None]
    assert given.usage is not None
    assert given.usage.completion_tokens == 30


def logprobs_of(choice: Any) -> list[float]:
    return list(choice.logprobs.token_logprobs)


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_stands_before_the_answer(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "", "prompt": "the cat sat", "max_tokens": 3, "logprobs": 1}
    plain = client.completions.create(**asked).choices[0]
    if stream:
        parts = [chunk.choices[0] for chunk in client.completions.create(echo=True, stream=True, **asked)]
    else:
        parts = list(client.completions.create(echo=True, **asked).choices)
    tokens = [token for part in parts if part.logprobs for token in part.logprobs.tokens or []]
    scores = [score for part in parts if part.logprobs for score in part.logprobs.token_logprobs or []]
    offsets = [offset for part in parts if part.logprobs for offset in part.logprobs.text_offset or []]
    text = "".join(part.text for part in parts)
    assert text == "the cat sat" + plain.text
    assert "".join(tokens) == text
    assert all(text[offset:].startswith(token) for offset, token in zip(offsets, tokens, strict=True))
    assert scores[0] is None
    assert all(score < 0 for score in scores[1:])


# The client warns of what it wrote itself when it sends an answer of its own back.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_answers_parse_into_the_wanted_type(client: openai.OpenAI) -> None:
    asked: Any = {"model": "", "messages": MESSAGES, "temperature": 1, "max_tokens": 200, "response_format": Pet}
    for number in range(3):
        message = client.chat.completions.parse(**asked, seed=number).choices[0].message
        assert isinstance(message.parsed, Pet)
    with client.chat.completions.stream(**asked, seed=5) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Pet)
    told: Any = [*MESSAGES, message, *MESSAGES]
    again = client.chat.completions.create(model="", messages=told, max_tokens=1)
    assert again.choices


@pytest.mark.parametrize(
    ("extra", "right"),
    [
        ({"guided_choice": ["yes", "no"]}, {"yes", "no"}),
        ({"guided_regex": "(ab|cd){2}"}, {"abab", "abcd", "cdab", "cdcd"}),
        ({"guided_json": {"enum": [1, 2]}}, {"1", "2"}),
        ({"guided_json": '{"enum": [1, 2]}'}, {"1", "2"}),
        ({"guided_grammar": 'start: "x" | "y"'}, {"x", "y"}),
        ({"guided_grammar": 'root ::= "x" | "y"'}, {"x", "y"}),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"yes", "no"}),
        ({"structured_outputs": {"json": {"const": {"a": 1}}}, "stop": ["}"]}, {'{"a":1'}),
    ],
)
def test_vllms_fields_bind_an_answer(client: openai.OpenAI, extra: dict[str, Any], right: set[str]) -> None:
    asked: Any = {"model": "", "prompt": "x", "max_tokens": 200, "n": 2, "temperature": 1, "seed": 1}
    whole = client.completions.create(**asked, extra_body=extra)
    assert {"".join(choice.text.split()) for choice in whole.choices} <= right


def test_any_json_object(client: openai.OpenAI) -> None:
    asked: Any = {"messages": MESSAGES, "response_format": {"type": "json_object"}, "logprobs": True, "temperature": 1}
    bias = {"94": -100, "3": -100}
    choice = client.chat.completions.create(
        model="own-template", **asked, seed=1, max_tokens=300, logit_bias=bias
    ).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    assert (choice.message.content or "").startswith("{")


def test_tools_are_called_when_they_must_be(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="", messages=MESSAGES, tools=TOOLS, tool_choice="required", temperature=1, seed=3, max_tokens=300
    )
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert call.function.name in {"weather", "ping"}
        assert isinstance(json.loads(call.function.arguments), dict)


def test_a_conversation_goes_on_after_a_call(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    asked: Any = {"model": "own-template", "tools": TOOLS, "temperature": 1, "max_tokens": 300}
    first = client.chat.completions.create(messages=MESSAGES, tool_choice=named, seed=1, **asked).choices[0].message
    assert first.tool_calls
    (call,) = first.tool_calls
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in {"Rome", "Oslo"}
    assert 1 <= arguments["days"] <= 9
    told: Any = [*MESSAGES, first, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    then = client.chat.completions.create(messages=told, tool_choice="none", seed=1, **{**asked, "max_tokens": 3})
    assert then.choices[0].finish_reason == "length"


def test_calls_are_streamed_as_deltas(client: openai.OpenAI) -> None:
    asked: Any = {"model": "", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "temperature": 1}
    whole = client.chat.completions.create(**asked, seed=3, max_tokens=300).choices[0].message.tool_calls or []
    with client.chat.completions.stream(**asked, seed=3, max_tokens=300) as stream:
        final = stream.get_final_completion().choices[0]
    streamed = final.message.tool_calls or []
    assert final.finish_reason == "tool_calls"
    assert [call.function.name for call in streamed] == [getattr(call, "function").name for call in whole]  # noqa: B009
    assert [call.function.arguments for call in streamed] == [getattr(call, "function").arguments for call in whole]  # noqa: B009


def test_an_adapters_own_chat_template_is_used(client: openai.OpenAI, pod: PodProcess) -> None:
    conversation = [{"role": "system", "content": "be brief"}, *MESSAGES]
    chat: Any = {"model": "own-template", "messages": conversation, "max_tokens": 6}
    text: Any = {"model": "own-template", "prompt": "|system|be brief|user|the cat|assistant|", "max_tokens": 6}
    given, by_hand = client.chat.completions.create(**chat), client.completions.create(**text)
    assert given.choices[0].message.content == by_hand.choices[0].text
    assert given.usage is not None
    assert by_hand.usage is not None
    assert given.usage.prompt_tokens == by_hand.usage.prompt_tokens
    with_tools = client.chat.completions.create(**chat, tools=TOOLS).usage
    told = client.completions.create(**{**text, "prompt": "[weather][ping]" + text["prompt"]}).usage
    assert with_tools is not None
    assert told is not None
    assert with_tools.prompt_tokens == told.prompt_tokens
    filled = pod.http.post("/v1/completions", json={"model": "own-template", "variables": {"question": "hi"}}).json()
    by_hand = client.completions.create(model="own-template", prompt="|user|hi|assistant|", max_tokens=6, stop="\n\n")
    assert filled["choices"][0]["text"] == by_hand.choices[0].text


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "nobody"}, 404, None),
        ({"model": "own-template:1"}, 403, None),
        ({"temperature": -1.0}, 422, "temperature"),
        ({"max_tokens": 5000}, 422, "max_tokens"),
        ({"extra_body": {"unheard_of": 1}}, 422, "unheard_of"),
        ({"extra_body": {"guided_json": {"type": "nothing"}}}, 422, "guided_json"),
        ({"extra_body": {"guided_regex": "a" * 70_000}}, 422, "guided_regex"),
        ({"extra_body": {"guided_regex": "(a"}}, 422, "guided_regex"),
        ({"extra_body": {"guided_regex": "ab\u00e9"}}, 422, "guided_regex"),
        ({"extra_body": {"guided_grammar": "start: x"}}, 422, "guided_grammar"),
        ({"extra_body": {"guided_grammar": "root ::= x"}}, 422, "guided_grammar"),
        ({"extra_body": {"guided_choice": []}}, 422, "guided_choice"),
        ({"extra_body": {"guided_choice": ["a"], "guided_regex": "a"}}, 422, "guided_choice"),
        ({"extra_body": {"structured_outputs": {}}}, 422, "structured_outputs"),
        ({"extra_body": {"stop_token_ids": [9999]}}, 422, "stop_token_ids"),
        ({"tools": TOOLS * 70}, 422, "tools"),
        ({"tools": TOOLS + TOOLS}, 422, "tools"),
        ({"tool_choice": "required"}, 422, "tool_choice"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 422, "messages"),
        ({"response_format": UNHEARD_OF_SCHEMA}, 422, "response_format"),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, 413, "messages"),
    ],
)
def test_errors_are_the_clients_own(
    client: openai.OpenAI, fields: dict[str, Any], status: int, param: str | None
) -> None:
    asked: Any = {"model": "", "messages": MESSAGES, "max_tokens": 8, **fields}
    with pytest.raises(ERRORS[status]) as caught:
        client.chat.completions.create(**asked)
    assert (caught.value.status_code, caught.value.param) == (status, param)


@pytest.mark.parametrize(("method", "fields"), ROUTES)
def test_every_route_has_the_same_errors(client: openai.OpenAI, method: str, fields: dict[str, Any]) -> None:
    for changed, status in (
        ({"model": "nobody"}, 404),
        ({"extra_body": {"unheard_of": 1}}, 422),
        ({"extra_headers": {"Authorization": "Bearer wrong"}}, 401),
    ):
        with pytest.raises(ERRORS[status]) as caught:
            attrgetter(method)(client)(**{"model": "", **fields, **changed})
        assert caught.value.status_code == status


def test_a_dead_end_is_an_error_in_a_stream_too(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="", prompt="x", stream=True, extra_body={"guided_regex": "ab\u00e9"})
    with pytest.raises(openai.APIError, match="cannot go on"):
        list(stream)


def test_the_admin_token_is_asked_for(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").get("/adapters", cast_to=object)
    assert client.with_options(api_key=ADMIN_TOKEN).get("/adapters", cast_to=object)


def test_more_answers_than_can_ever_wait_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.completions.create(model="", prompt="the", max_tokens=500, n=16)
    assert caught.value.param == "n"


def test_more_answers_than_may_wait_are_turned_away_for_now(client: openai.OpenAI) -> None:
    def ask(_: int) -> openai.RateLimitError | None:
        try:
            client.completions.create(model="", prompt="the", max_tokens=500, n=8)
        except openai.RateLimitError as error:
            return error
        return None

    # So many that they can neither run nor wait all at the same time.
    with ThreadPoolExecutor(16) as callers:
        refusals = [error for error in callers.map(ask, range(16)) if error is not None]
    assert 0 < len(refusals) < 16
    assert all(int(error.response.headers["Retry-After"]) >= 1 for error in refusals)


def test_a_leaving_pod_says_so(pod: PodProcess, clients: dict[str, openai.OpenAI]) -> None:
    """The last test of the module: its pod ends."""
    with clients["sync"].completions.create(model="", prompt="the", max_tokens=1000, stream=True) as running:
        next(iter(running))
        pod.signal(signal.SIGTERM)
        pod.wait_for(lambda: pod.http.get("/ready").json()["status"] == "draining" or None, "the pod to drain")
        for client in clients.values():
            with pytest.raises(openai.InternalServerError) as caught:
                client.completions.create(model="", prompt="x")
            assert caught.value.status_code == 503
