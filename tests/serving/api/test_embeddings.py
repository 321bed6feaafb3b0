"""Vectors from a running pod, in both dialects, through OpenAI's own client."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serving.conftest import SourceFactory
from tests.serving.pod_process import ADMIN_TOKEN, PodProcess
from tests.serving.random_model import quiet_peft
from tests.serving.registered_adapter import AdapterSource, Registered, RegistryHand

TEXTS = ["the cat sat on the mat", "a dog", "the cat sat on the mat and the log"]


@pytest.fixture(scope="module")
def source(tiny_adapter: SourceFactory) -> AdapterSource:
    return tiny_adapter(1)


@pytest.fixture(scope="module")
def adapter(pod: PodProcess, registry: RegistryHand, source: AdapterSource) -> Registered:
    registered = registry.register("vectors", source)
    registry.promote(registered)
    pod.wait_serving("vectors", 1)
    return registered


@pytest.fixture(scope="module")
def client(pod: PodProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{pod.url}/v1", api_key=ADMIN_TOKEN)


@pytest.fixture(scope="module")
def hidden(source: AdapterSource) -> dict[str, list[torch.Tensor]]:
    """Last hidden states of each text, by `model`."""
    from peft import PeftModel

    tokenizer: Any = AutoTokenizer.from_pretrained(source.model)
    base: Any = AutoModelForCausalLM.from_pretrained(source.model, dtype=torch.float32)

    def compute(model: Any) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [
                model.eval()(tokenizer(text, return_tensors="pt").input_ids, output_hidden_states=True).hidden_states[
                    -1
                ][0]
                for text in TEXTS
            ]

    found = {"": compute(base)}
    with quiet_peft():
        found["vectors"] = compute(PeftModel.from_pretrained(base, source.folder))
    return found


def unit(vector: torch.Tensor) -> list[float]:
    found: list[float] = (vector / vector.norm()).tolist()
    return found


@pytest.mark.parametrize("model", ["", "vectors"])
def test_openai_client_gets_vectors_of_length_one(
    client: openai.OpenAI, adapter: Registered, hidden: dict[str, list[torch.Tensor]], model: str
) -> None:
    # The client asks for base64 unless told otherwise.
    packed = client.embeddings.create(model=model, input=TEXTS)
    plain = client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
    for index, states in enumerate(hidden[model]):
        for answer in (packed, plain):
            assert answer.data[index].index == index
            assert answer.data[index].embedding == pytest.approx(unit(states[-1]), abs=2e-2)
        assert math.hypot(*packed.data[index].embedding) == pytest.approx(1.0, abs=1e-5)
    assert packed.usage.prompt_tokens == sum(len(states) for states in hidden[model])
    assert packed.model == (model or "tiny-llama")
    mean = client.embeddings.create(model=model, input=TEXTS[0], extra_body={"pooling": "mean"})
    assert mean.data[0].embedding == pytest.approx(unit(hidden[model][0].mean(0)), abs=2e-2)


def test_text_and_tokens_of_it_have_one_vector(client: openai.OpenAI, pod: PodProcess) -> None:
    tokens = [[item["id"] for item in pod.http.post("/tokenize", json={"inputs": text}).json()] for text in TEXTS]
    texts = client.embeddings.create(model="", input=TEXTS)
    for given in (tokens, tokens[0]):
        answer = client.embeddings.create(model="", input=given)
        for item in answer.data:
            assert item.embedding == pytest.approx(texts.data[item.index].embedding, abs=1e-5)


def test_lorax_embed_gives_the_plain_hidden_state(
    pod: PodProcess, adapter: Registered, hidden: dict[str, list[torch.Tensor]]
) -> None:
    bodies: dict[str, dict[str, object]] = {"": {"inputs": TEXTS[0], "parameters": None, "stream": False}}
    bodies["vectors"] = {"inputs": TEXTS[0], "parameters": {"adapter_id": "vectors"}}
    for model, body in bodies.items():
        response = pod.http.post("/embed", json=body)
        expected = hidden[model][0][-1]
        error = (torch.tensor(response.json()["embeddings"]) - expected).abs().max() / expected.abs().max()
        assert float(error) < 2e-2
        assert response.headers["x-prompt-tokens"] == str(len(hidden[model][0]))
    assert response.headers["x-adapter-id"] == "vectors"
    assert response.headers["x-lorafleet-digest"] == adapter.digest


def test_a_prompt_may_fill_the_model_and_no_more(client: openai.OpenAI, pod: PodProcess) -> None:
    limit = pod.http.get("/info").json()["max_total_tokens"]
    assert client.embeddings.create(model="", input=[[5] * limit]).usage.prompt_tokens == limit
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(model="", input=[[5] * (limit + 1)])
    assert caught.value.status_code == 413


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": ""}, "input holds an empty text"),
        ({"input": []}, "input holds 0 texts"),
        ({"input": ["a"] * 257}, "input holds 257 texts, it must hold 1 to 256"),
        ({"input": "a", "dimensions": 32}, "dimensions is 32, the model's vectors have 64"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": [[99999]]}, "token id 99999"),
        ({"input": "a", "n": 1}, "n: Extra inputs are not permitted"),
    ],
)
def test_bad_requests_name_the_field(pod: PodProcess, body: dict[str, object], said: str) -> None:
    response = pod.http.post("/v1/embeddings", json=body)
    assert response.status_code == 422
    assert said in response.json()["error"]["message"]


def test_more_texts_than_run_at_a_time_are_answered_in_order(client: openai.OpenAI) -> None:
    texts = [f"cat {number}" for number in range(40)]
    one_by_one = [client.embeddings.create(model="", input=text).data[0].embedding for text in texts[::13]]
    together = client.embeddings.create(model="", input=texts, dimensions=64).data
    assert [item.index for item in together] == list(range(40))
    for alone, item in zip(one_by_one, together[::13], strict=True):
        assert item.embedding == pytest.approx(alone, abs=2e-2)
