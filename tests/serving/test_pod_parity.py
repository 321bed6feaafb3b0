"""Tokens of a whole pod over HTTP against PEFT: base and adapters of different rank, alone and mixed in one batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.serving.conftest import PodFactory
from tests.serving.pod_process import PodProcess
from tests.serving.random_model import peft_answers, write_adapter
from tests.serving.registered_adapter import AdapterSource, RegistryHand

NUM_TOKENS = 64
INPUTS = "the cat sat on"
RANKS = {"parity-2": 2, "parity-8": 8, "parity-16": 16}


def _ask(pod: PodProcess, name: str) -> list[int]:
    parameters: dict[str, object] = {"max_new_tokens": NUM_TOKENS, "details": True, "ignore_eos_token": True}
    if name:
        parameters["adapter_id"] = name
    response = pod.http.post("/generate", json={"inputs": INPUTS, "parameters": parameters})
    assert response.status_code == 200, response.text
    return [token["id"] for token in response.json()["details"]["tokens"]]


def test_a_pod_answers_as_peft_does_alone_and_mixed(
    pod_factory: PodFactory, registry: RegistryHand, tiny_model: Path, tmp_path: Path
) -> None:
    pod = pod_factory("--dtype", "float32")
    pod.wait_ready()
    prompt = [token["id"] for token in pod.http.post("/tokenize", json={"inputs": INPUTS}).json()]
    expected = {"": peft_answers(tiny_model, None, [prompt], NUM_TOKENS)[0]}
    for seed, (name, rank) in enumerate(RANKS.items()):
        folder = write_adapter(tiny_model, tmp_path / name, seed, r=rank)
        registry.promote(registry.register(name, AdapterSource(tiny_model, folder, rank=rank)))
        expected[name] = peft_answers(tiny_model, folder, [prompt], NUM_TOKENS)[0]
        pod.wait_serving(name, 1)
    assert len({tuple(answer) for answer in expected.values()}) == len(expected), "the adapters change too little"
    assert {name: _ask(pod, name) for name in expected} == expected
    with ThreadPoolExecutor(len(expected)) as pool:
        assert dict(zip(expected, pool.map(lambda name: _ask(pod, name), expected), strict=True)) == expected
