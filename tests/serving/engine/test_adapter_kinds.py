"""Every kind of adapter against PEFT: logits in bf16, and tokens under every pressure that may not change them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from tests.serving.forward import Forward
from tests.serving.kernels.forms import FORMS, make_kernels
from tests.serving.random_model import VOCAB_SIZE, peft_answers, quiet_peft, write_adapter, write_llama

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
    "wide": {"r": 256, "lora_alpha": 64},
}
PROMPTS = [[(7 * i + k) % VOCAB_SIZE for i in range(21)] for k in (1, 2)]
ROOMY, NARROW = 700, 33
NUM_PAIRS = 16
"""Of texts: the largest error of few is chance, that of one is twice PEFT's as often as it is half."""
STEPS = ([70, 9], [71, 10], [80, 11], [81, 12], [82, 13], [90, 17])
"""Ends of a pair: prefill, decode, a chunk behind a cached context beside a decode, and decodes alone."""


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
    for turn in range(2):
        asked = {
            f"{kind} {number}": GenerationRequest(f"{kind} {number}", tuple(prompt), sampling, kind)
            for kind in expected
            for number, prompt in enumerate(PROMPTS)
        }
        answers, cached = _answers(engine, asked.values())
        for request_id, request in asked.items():
            number = int(request_id.split()[1])
            assert answers[request_id] == expected[request.adapter][number], (turn, request_id)
        if num_blocks == ROOMY:
            # What is shared is what the same adapter has computed: all whole blocks of a prompt.
            assert {*cached.values()} == {20 if prefix_caching and turn == 1 else 0}
    assert (engine.stats().num_preemptions > 0) == (num_blocks == NARROW)
    engine.check_integrity()


def _answers(engine: Engine, requests: Iterable[GenerationRequest]) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Tokens, and how many tokens of the prompt came from the prefix cache, by request."""
    answers: defaultdict[str, list[int]] = defaultdict(list)
    cached: dict[str, int] = {}
    for request in requests:
        engine.add_request(request)
    while engine.has_unfinished():
        for output in engine.step():
            assert output.token_id is not None
            answers[output.request_id].append(output.token_id)
            cached.setdefault(output.request_id, output.num_cached or 0)
    return answers, cached


def _texts() -> list[Tensor]:
    """By their place in a pair: [num_pairs, length]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB_SIZE, (NUM_PAIRS, length), generator=generator) for length in STEPS[-1]]


class PeftLogits(NamedTuple):
    """What PEFT computes: [num_steps, 2, num_pairs, vocab_size]."""

    exact: Tensor
    """In fp32."""
    rounded: tuple[Tensor, ...]
    """In bf16, by each way to compute attention: where a place is sensitive, one alone may be lucky."""


@pytest.fixture(scope="module")
def peft_logits(base: Path, adapters: Mapping[str, Path]) -> Mapping[str | None, PeftLogits]:
    found: dict[str | None, PeftLogits] = {}
    for kind in (None, *adapters):
        folder = None if kind is None else adapters[kind]
        exact = _theirs(base, folder, torch.float32, "sdpa")
        rounded = tuple(_theirs(base, folder, torch.bfloat16, attention) for attention in ("sdpa", "eager"))
        found[kind] = PeftLogits(exact, rounded)
    return found


def _theirs(base: Path, adapter: Path | None, dtype: torch.dtype, attention: str) -> Tensor:
    """Logits at each end of each step."""
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation=attention)
    if adapter is not None:
        with quiet_peft():
            model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        rows = [model(texts).logits for texts in _texts()]
    steps = [[row[:, end - 1] for row, end in zip(rows, ends, strict=True)] for ends in STEPS]
    return torch.stack([torch.stack(step) for step in steps])


def _ours(forward: Forward, kinds: Sequence[str | None]) -> Tensor:
    """The same of several kinds beside each other: [num_steps, num_kinds, 2, num_pairs, vocab_size]."""
    texts = [text for texts in _texts() for text in texts.tolist()]
    sequences = [forward.sequence(text, kind) for kind in kinds for text in texts]
    steps = [[end for end in ends for _ in range(NUM_PAIRS)] * len(kinds) for ends in STEPS]
    logits = torch.stack([forward.logits(sequences, ends) for ends in steps])
    return logits.view(len(STEPS), len(kinds), 2, NUM_PAIRS, -1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), [None, *KINDS]], ids=[*KINDS, "mixed"])
def test_bf16_is_as_near_to_fp32_as_peft_is(
    base: Path,
    adapters: Mapping[str, Path],
    peft_logits: Mapping[str | None, PeftLogits],
    kinds: Sequence[str | None],
    form: str,
) -> None:
    folders = {kind: adapters[kind] for kind in kinds if kind is not None}
    forward = Forward(base, folders, make_kernels(form, torch.bfloat16), torch.bfloat16)
    for kind, ours in zip(kinds, _ours(forward, kinds).unbind(1), strict=True):
        exact, rounded = peft_logits[kind]
        error, theirs = (ours - exact).abs(), [(logits - exact).abs() for logits in rounded]
        assert error.mean() <= 2 * min(other.mean() for other in theirs), kind
        assert error.max() <= 2 * max(other.max() for other in theirs), kind
