"""What a key may ask for, and how much: patterns of names, allowances of a minute, and changes while the pod runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.pod_process import ADMIN_TOKEN, PodProcess
from tests.serving.registered_adapter import RegistryHand

OPEN, SUPPORT, SLOW, BRIEF = (f"key-of-{name}" for name in ("open", "support", "slow", "brief"))
BASE = "tiny-llama"
REQUESTS, TOKENS = 3, 60
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the cat", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 2},
    "/v1/embeddings": {"input": "the cat"},
    "/generate": {"inputs": "the cat", "parameters": {"max_new_tokens": 2}},
    "/generate_stream": {"inputs": "the cat", "parameters": {"max_new_tokens": 2}},
    "/embed": {"inputs": "the cat"},
}
TOKENIZE = {"inputs": "the cat"}


@dataclass
class KeyedPod:
    """A pod, the file of its keys, and names of two adapters it serves."""

    process: PodProcess
    path: Path
    support: str
    sales: str

    def ask(self, key: str, path: str = "/v1/completions", model: str | None = None, **fields: Any) -> httpx.Response:
        body = {**ROUTES.get(path, TOKENIZE), **fields}
        if model is not None and path.startswith("/v1/"):
            body["model"] = model
        elif model is not None:
            body["parameters"] = {**body.get("parameters", {}), "adapter_id": model}
        return self.process.http.post(path, json=body, headers={"Authorization": f"Bearer {key}"})

    def models(self, key: str | None) -> set[str]:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return {entry["id"] for entry in self.process.http.get("/v1/models", headers=headers).json()["data"]}

    def write(self, **changes: dict[str, Any]) -> None:
        write_keys(self.path, self.support, **changes)


def write_keys(path: Path, support: str, **changes: dict[str, Any]) -> None:
    """The keys of this module, of which some are other than usual."""
    keys: dict[str, dict[str, Any]] = {
        "open": {},
        "support": {"models": [f"{support[:-4]}*"], "scopes": ["versions"]},
        "slow": {"requests_per_minute": REQUESTS},
        "brief": {"tokens_per_minute": TOKENS},
    }
    entries = [
        {"name": name, "sha256": hashlib.sha256(f"key-of-{name}".encode()).hexdigest(), **fields}
        for name, fields in (keys | changes).items()
    ]
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"keys": entries}))
    os.replace(beside, path)


@pytest.fixture(scope="module")
def keyed(
    pod_factory: PodFactory,
    registry: RegistryHand,
    tiny_adapter: SourceFactory,
    tmp_path_factory: pytest.TempPathFactory,
) -> KeyedPod:
    support, sales = f"support-{uuid4().hex[:8]}", f"sales-{uuid4().hex[:8]}"
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    write_keys(path, support)
    for number, name in enumerate((support, sales)):
        registry.promote(registry.register(name, tiny_adapter(number + 50)))
    process = pod_factory("--api-keys", str(path))
    process.wait_ready()
    for name in (support, sales):
        process.wait_serving(name, 1)
    return KeyedPod(process, path, support, sales)


@pytest.mark.parametrize("path", ROUTES)
def test_a_key_reaches_what_its_patterns_match_and_nothing_else(keyed: KeyedPod, path: str) -> None:
    assert keyed.ask(SUPPORT, path, keyed.support).status_code == 200
    # The base, whichever way it is named, and another's adapter, whether there is one or not.
    for model in (None, "", BASE, keyed.sales, f"{keyed.sales}@champion", f"{keyed.sales}:1", "nobody"):
        response = keyed.ask(SUPPORT, path, model)
        assert response.status_code == 403, (model, response.text)
        assert keyed.support[:-4] in response.text
    # Nor does the answer tell which of the two.
    for there in (keyed.sales, f"{keyed.sales}@champion", f"{keyed.sales}@shadow", f"{keyed.sales}:1"):
        answers = keyed.ask(SUPPORT, path, there), keyed.ask(SUPPORT, path, there.replace(keyed.sales, "nobody"))
        assert answers[0].text.replace(keyed.sales, "nobody") == answers[1].text
        assert told(answers[0]) == told(answers[1])
    for model in (None, keyed.support, keyed.sales):
        assert keyed.ask(OPEN, path, model).status_code == 200


def test_a_scope_and_a_pattern_are_both_needed_for_a_version(keyed: KeyedPod) -> None:
    assert keyed.ask(SUPPORT, model=f"{keyed.support}:1").status_code == 200
    assert keyed.ask(OPEN, model=f"{keyed.support}:1").status_code == 403


def test_adapters_of_others_are_not_merged(keyed: KeyedPod) -> None:
    def merge(key: str, *names: str) -> int:
        merged = {"ids": names, "weights": [1.0] * len(names), "merge_strategy": "linear"}
        return keyed.ask(key, "/generate", parameters={"max_new_tokens": 2, "merged_adapters": merged}).status_code

    assert merge(SUPPORT, keyed.support, keyed.support) == 200
    assert merge(SUPPORT, keyed.support, keyed.sales) == 403
    assert merge(OPEN, keyed.support, keyed.sales) == 200


def test_a_key_is_shown_the_models_it_may_ask_for(keyed: KeyedPod) -> None:
    every = keyed.models(OPEN)
    assert {BASE, keyed.support, keyed.sales} <= every
    assert keyed.models(ADMIN_TOKEN) == every
    assert keyed.models(SUPPORT) == {name for name in every if name.startswith(keyed.support[:-4])}
    headers = {"Authorization": f"Bearer {SUPPORT}"}
    assert keyed.process.http.get(f"/v1/models/{keyed.support}", headers=headers).status_code == 200
    there, nowhere = (keyed.process.http.get(f"/v1/models/{name}", headers=headers) for name in (keyed.sales, "nobody"))
    assert there.status_code == nowhere.status_code == 404
    assert there.text.replace(keyed.sales, "nobody") == nowhere.text


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_a_key_the_base_alone_is_seen(keyed: KeyedPod, key: str | None) -> None:
    assert keyed.models(key) == {BASE}
    assert keyed.process.http.get(f"/v1/models/{keyed.sales}").status_code == 404
    for path in ("/info", "/ready", "/health", "/version"):
        shown = keyed.process.http.get(path).text
        assert keyed.sales not in shown
        assert keyed.support not in shown


@pytest.mark.parametrize("path", [*ROUTES, "/tokenize"])
def test_answers_tell_a_key_what_it_still_has(keyed: KeyedPod, path: str) -> None:
    name = f"teller-{uuid4().hex[:8]}"
    keyed.write(**{name: {"requests_per_minute": REQUESTS, "tokens_per_minute": 10 * TOKENS}})
    key = f"key-of-{name}"
    keyed.process.wait_for(lambda: keyed.ask(key, model="nobody").status_code == 404 or None, "the key to be known")
    seen = keyed.ask(key, path)
    assert seen.status_code == 200
    assert seen.headers["x-ratelimit-limit-requests"] == str(REQUESTS)
    assert int(seen.headers["x-ratelimit-remaining-requests"]) <= REQUESTS - 2
    assert 20 < float(re.fullmatch(r"([\d.]+)s", seen.headers["x-ratelimit-reset-requests"])[1]) <= 60  # type: ignore[index]
    assert seen.headers["x-ratelimit-limit-tokens"] == str(10 * TOKENS)
    # Those of an answer that is streamed are had, as long as it may become; a text's that is only looked at are not.
    left = int(seen.headers["x-ratelimit-remaining-tokens"])
    assert (left == 10 * TOKENS) == (path == "/tokenize")
    assert seen.headers["x-ratelimit-reset-tokens"].endswith("s")
    refused = next(found for found in (keyed.ask(key, path) for _ in range(REQUESTS + 1)) if found.status_code != 200)
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert set(told(refused)) == set(told(seen))


def test_a_key_without_limits_is_told_of_none(keyed: KeyedPod) -> None:
    for response in (keyed.ask(OPEN), keyed.ask(ADMIN_TOKEN), keyed.process.http.post("/generate", json={})):
        assert not told(response)
    brief = keyed.ask(BRIEF, max_tokens=1)
    assert brief.headers["x-ratelimit-limit-tokens"] == str(TOKENS)
    assert "x-ratelimit-limit-requests" not in brief.headers


def told(response: httpx.Response) -> dict[str, str]:
    """What an answer tells of limits."""
    return {name: value for name, value in response.headers.items() if name.startswith("x-ratelimit")}


@pytest.mark.parametrize(("path", "name"), [("/v1/completions", "first"), ("/generate", "second"), ("/embed", "third")])
def test_requests_beyond_a_minute_s_are_told_when_to_come_back(keyed: KeyedPod, path: str, name: str) -> None:
    keyed.write(**{name: {"requests_per_minute": REQUESTS}})
    key = f"key-of-{name}"
    keyed.process.wait_for(lambda: keyed.ask(key, path).status_code == 200 or None, "the key to be known")
    responses = [keyed.ask(key, path) for _ in range(REQUESTS + 2)]
    refused = [response for response in responses if response.status_code != 200]
    assert {response.status_code for response in refused} == {429}
    assert len(responses) - len(refused) >= REQUESTS - 1
    assert all(1 <= int(response.headers["retry-after"]) <= 60 / REQUESTS for response in refused)
    told = refused[-1].json()
    assert (told["error_type"] if "error_type" in told else told["error"]["type"]) in {"rate_limit", "rate_limit_error"}
    assert keyed.ask(OPEN, path).status_code == 200


def test_tokens_are_reserved_for_the_longest_answer_and_given_back(keyed: KeyedPod) -> None:
    (num_prompt,) = {keyed.ask(OPEN).json()["usage"]["prompt_tokens"]}
    # As long as answers are short, the reserved rest is there for the next. A stop token ends them, and no stop string:
    # until the front has found one in the text, the engine computes some more, which counts.
    stopped: dict[str, Any] = {"logit_bias": {"20": 100}, "stop_token_ids": [20]}
    brief = [keyed.ask(BRIEF, max_tokens=TOKENS - 2 * num_prompt, **stopped) for _ in range(2)]
    assert [response.status_code for response in brief] == [200, 200]
    assert {response.json()["usage"]["completion_tokens"] for response in brief} == {0}
    long = keyed.ask(BRIEF, max_tokens=TOKENS + 1, n=1)
    assert (long.status_code, long.json()["error"]["type"]) == (429, "rate_limit_error")
    assert re.search(rf"'brief' may have {TOKENS} tokens in a minute", long.text)
    assert 1 <= int(long.headers["retry-after"]) <= 60


def test_answers_of_one_request_share_the_allowance_and_none_is_left_behind(keyed: KeyedPod) -> None:
    keyed.write(several={"tokens_per_minute": TOKENS})
    key = "key-of-several"
    keyed.process.wait_for(lambda: keyed.ask(key, max_tokens=1).status_code != 401 or None, "the key to be known")
    # They fit one by one, and not together; and nothing of it is begun, or paid for.
    refused = keyed.ask(key, n=2, max_tokens=TOKENS // 2, temperature=1.0)
    assert refused.status_code == 429
    assert keyed.ask(key, n=2, max_tokens=TOKENS // 4, temperature=1.0).status_code == 200


@pytest.mark.parametrize(("path", "several"), [("/v1/completions", "n"), ("/generate", "best_of")])
def test_several_answers_pay_for_their_prompt_once(keyed: KeyedPod, path: str, several: str) -> None:
    key = f"shared-{several.replace('_', '-')}"
    keyed.write(**{key: {"tokens_per_minute": TOKENS}})
    prompt = "the cat " * 5  # Twice it would be more than a minute's.
    asked: dict[str, Any] = {"max_tokens": 2, "n": 8, "temperature": 1.0, "prompt": prompt}
    if several == "best_of":
        asked = {"inputs": prompt, "parameters": {"max_new_tokens": 2, "best_of": 8, "do_sample": True}}
    answer = keyed.process.wait_for(
        lambda: None if (found := keyed.ask(f"key-of-{key}", path, **asked)).status_code == 401 else found,
        "the key to be known",
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "fields"), [("/v1/completions", {"prompt": ["a b"] * 40}), ("/v1/embeddings", {"input": ["a b"] * 40})]
)
def test_many_prompts_of_one_request_pass_once_the_allowance_is_whole(
    keyed: KeyedPod, path: str, fields: dict[str, Any]
) -> None:
    name = f"many-{path.rpartition('/')[2]}"
    keyed.write(**{name: {"tokens_per_minute": TOKENS}})
    key = f"key-of-{name}"
    # More than a minute's at once: they are all begun, or none is.
    first = keyed.process.wait_for(
        lambda: None if (answer := keyed.ask(key, path, **fields)).status_code == 401 else answer, "the key to be known"
    )
    assert first.status_code == 200, first.text
    usage = first.json()["usage"]
    assert usage["total_tokens"] > TOKENS
    again = keyed.ask(key, path, **fields)
    assert again.status_code == 429
    owed_s = (usage["total_tokens"] - TOKENS) / TOKENS * 60
    assert owed_s - 30 <= int(again.headers["retry-after"]) <= owed_s + 1


def test_keys_change_while_the_pod_runs(keyed: KeyedPod) -> None:
    streamed = keyed.process.http.build_request(
        "POST",
        "/v1/completions",
        json={"prompt": "the cat", "max_tokens": 200, "ignore_eos": True, "stream": True},
        headers={"Authorization": f"Bearer {OPEN}"},
    )
    with_old_key = keyed.process.http.send(streamed, stream=True)
    keyed.write(open={"models": ["sales-*"]}, fresh={})
    keyed.process.wait_for(lambda: keyed.ask("key-of-fresh").status_code == 200 or None, "the new key to be known")
    assert keyed.ask(OPEN).status_code == 403
    assert keyed.ask(OPEN, model=keyed.sales).status_code == 200
    # What was begun goes on.
    assert with_old_key.read().rstrip().endswith(b"[DONE]")
    keyed.path.write_text("keys: [")
    keyed.process.wait_for(lambda: "the keys stay as they were" in keyed.process.log.read_text() or None, "the error")
    assert keyed.ask("key-of-fresh").status_code == 200
    assert keyed.process.http.get("/ready").json()["keys"].startswith("as they were")
    keyed.write()
    keyed.process.wait_for(lambda: keyed.ask("key-of-fresh").status_code == 401 or None, "the key to be gone")
    assert keyed.process.http.get("/ready").json()["keys"] == "read"
    assert keyed.ask(OPEN).status_code == 200
