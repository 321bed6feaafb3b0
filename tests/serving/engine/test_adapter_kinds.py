"""Tokens of every kind of adapter against PEFT, all in one batch, under every pressure that may not change them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from tests.serving.random_model import VOCAB_SIZE, peft_answers, write_adapter, write_llama

NUM_TOKENS = 40
BLOCK_BYTES = 2 * 2 * 2 * 8 * 4 * 4
"""Keys and values of two layers, two heads of eight fp32, four tokens."""
KINDS: dict[str, dict[str, object]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "r": 8},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 9, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"v_proj": 20}},
    "attention-only": {"target_modules": ["k_proj", "o_proj"], "r": 3},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "dora-head": {"target_modules": ["down_proj", "lm_head"], "use_dora": True},
    "embedding": {"target_modules": ["v_proj", "embed_tokens"]},
}
PROMPTS = [[(7 * i + k) % VOCAB_SIZE for i in range(21)] for k in (1, 2)]
ROOMY, NARROW = 700, 33


@pytest.fixture(scope="module", params=[{}, {"tie_word_embeddings": True}], ids=["apart", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder, attention_bias=True, **request.param)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {
        kind: write_adapter(base, tmp_path_factory.mktemp(kind), seed, **options)
        for seed, (kind, options) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def expected(base: Path, adapters: Mapping[str, Path]) -> Mapping[str | None, list[list[int]]]:
    kinds: list[str | None] = [None, *KINDS]
    return {kind: peft_answers(base, None if kind is None else adapters[kind], PROMPTS, NUM_TOKENS) for kind in kinds}


@pytest.mark.parametrize("num_blocks", [ROOMY, NARROW], ids=["roomy", "preempting"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "uncached"])
def test_tokens_equal_peft_in_a_mixed_batch(
    base: Path,
    adapters: Mapping[str, Path],
    expected: Mapping[str | None, list[list[int]]],
    prefix_caching: bool,
    num_blocks: int,
) -> None:
    config = EngineConfig(
        base,
        dtype=DType.FP32,
        block_size=4,
        kv_cache_bytes=(num_blocks + 1) * BLOCK_BYTES,  # One stands for padding.
        prefix_caching=prefix_caching,
    )
    engine = Engine(config)
    for kind, folder in adapters.items():
        engine.load_adapter(kind, folder)
    sampling = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
    requests = [
        GenerationRequest(f"{kind} {number} {turn}", tuple(prompt), sampling, kind)
        for turn in range(2)
        for kind in expected
        for number, prompt in enumerate(PROMPTS)
    ]
    answers = engine.generate(requests)
    for request in requests:
        _, number, _ = request.request_id.split()
        assert answers[request.request_id] == expected[request.adapter][int(number)], request.request_id
    assert (engine.stats().num_preemptions > 0) == (num_blocks == NARROW)
    engine.check_integrity()
