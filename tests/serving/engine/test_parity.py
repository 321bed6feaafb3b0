"""Greedy tokens of the engine equal PEFT's on a real model: the first promise of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from tests.serving.random_model import peft_answers, write_adapter

pytestmark = pytest.mark.timeout(900)  # Minutes where the machine is shared with training.

NUM_TOKENS = 64
PROMPT_LEN = 5
PROMPTS = ("The capital of France is", "def fibonacci(n):\n")
ADAPTERS: dict[str, dict[str, object]] = {
    "rank-8-all-linear": {"r": 8, "lora_alpha": 16},
    "rank-4-attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "rank-16-rslora": {
        "r": 16,
        "lora_alpha": 16,
        "use_rslora": True,
        "target_modules": ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"],
        "rank_pattern": {"down_proj": 3},
    },
}

Answers = dict[tuple[str | None, int], list[int]]


@pytest.fixture(scope="module")
def prompts(base_model: Path) -> list[tuple[int, ...]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    return [tuple(tokenizer(text).input_ids[:PROMPT_LEN]) for text in PROMPTS]


@pytest.fixture(scope="module")
def adapters(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(base_model, root / name, seed, **options)
        for seed, (name, options) in enumerate(ADAPTERS.items())
    }


@pytest.fixture(scope="module")
def expected(base_model: Path, adapters: dict[str, Path], prompts: list[tuple[int, ...]]) -> Answers:
    folders = [(None, None), *adapters.items()]
    return {
        (name, index): answer
        for name, folder in folders
        for index, answer in enumerate(peft_answers(base_model, folder, prompts, NUM_TOKENS))
    }


@pytest.fixture(scope="module")
def engine(base_model: Path, adapters: dict[str, Path]) -> Engine:
    engine = Engine(EngineConfig(base_model, dtype=DType.FP32, kv_cache_bytes=64 << 20))
    for name, folder in adapters.items():
        engine.load_adapter(name, folder)
    return engine


def make_request(key: tuple[str | None, int], prompts: list[tuple[int, ...]]) -> GenerationRequest:
    sampling = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
    return GenerationRequest(str(key), prompts[key[1]], sampling, key[0])


def test_base_and_adapters_mixed_in_one_batch_equal_peft(
    engine: Engine, expected: Answers, prompts: list[tuple[int, ...]]
) -> None:
    answers = engine.generate([make_request(key, prompts) for key in expected])
    assert answers == {str(key): answer for key, answer in expected.items()}
    engine.check_integrity()


@pytest.mark.parametrize("adapter", [None, *ADAPTERS])
def test_base_and_adapters_alone_equal_peft(
    engine: Engine, expected: Answers, prompts: list[tuple[int, ...]], adapter: str | None
) -> None:
    assert engine.generate([make_request((adapter, 0), prompts)]) == {str((adapter, 0)): expected[adapter, 0]}
