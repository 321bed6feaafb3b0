"""Prompt log-probabilities and vectors against transformers and PEFT, under every pressure that may not change them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorafleet_serving.engine import prompt_reading
from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.prompt_reading import PromptScores
from lorafleet_serving.engine.request import (
    FinishReason,
    GenerationRequest,
    Pooling,
    SamplingParams,
    TokenOutput,
)
from lorafleet_serving.engine.scored_prompt import ScoredPrompt
from lorafleet_serving.engine.token_stream import TokenStream
from lorafleet_serving.exceptions import InvalidRequest
from tests.serving.random_model import VOCAB_SIZE, quiet_peft, write_adapter, write_llama

BLOCK_BYTES = 2 * 2 * 2 * 8 * 4 * 4
"""Keys and values of two layers, two heads of eight fp32, four tokens."""
PROMPTS = [[(7 * i * i + k) % VOCAB_SIZE for i in range(length)] for k, length in ((1, 33), (2, 32), (3, 1), (4, 17))]
ADAPTERS: dict[str, dict[str, object]] = {
    "linears": {},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["v_proj", "embed_tokens"]},
}
SETTINGS: dict[str, dict[str, object]] = {
    "plain": {},
    "chunks": {"max_batched_tokens": 5, "max_num_seqs": 4},
    "preemption": {"kv_cache_bytes": 23 * BLOCK_BYTES, "max_batched_tokens": 5, "max_num_seqs": 5},
    "no-prefix-cache": {"prefix_caching": False},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: write_adapter(base, tmp_path_factory.mktemp(name), seed, **options)
        for seed, (name, options) in enumerate(ADAPTERS.items(), start=1)
    }


class Expected:
    """Logits and last hidden states of transformers or PEFT in fp32, by prompt."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        from peft import PeftModel

        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            with quiet_peft():
                model = PeftModel.from_pretrained(model, adapter)
        model.eval()
        with torch.inference_mode():
            outputs = [model(torch.tensor([prompt]), output_hidden_states=True) for prompt in PROMPTS]
        self.logprobs = [torch.log_softmax(output.logits[0], dim=-1) for output in outputs]
        self.hidden = [output.hidden_states[-1][0] for output in outputs]


@pytest.fixture(scope="module")
def expected(base: Path, adapters: dict[str, Path]) -> dict[str | None, Expected]:
    return {name: Expected(base, adapters.get(name or "")) for name in (None, *adapters)}


def make_engine(base: Path, adapters: dict[str, Path], **settings: object) -> Engine:
    defaults: dict[str, object] = {"dtype": DType.FP32, "kv_cache_bytes": 1 << 20, "block_size": 4, "num_threads": 1}
    engine = Engine(EngineConfig(base, **(defaults | settings)))  # type: ignore[arg-type]
    for name, folder in adapters.items():
        engine.load_adapter(name, folder)
    return engine


def run(engine: Engine) -> list[TokenOutput]:
    outputs: list[TokenOutput] = []
    while engine.has_unfinished():
        outputs += engine.step()
        engine.check_integrity()
    assert engine.stats().num_free_blocks == engine.stats().num_kv_blocks
    return outputs


def check_scores(output: TokenOutput, prompt: list[int], logprobs: torch.Tensor) -> None:
    assert [token.logprob is None for token in output.prompt] == [True] + [False] * (len(prompt) - 1)
    for position, token in enumerate(output.prompt[1:], start=1):
        row = logprobs[position - 1]
        assert token.logprob == pytest.approx(float(row[prompt[position]]), abs=1e-4)
        best = torch.topk(row, 2)
        assert [item.token_id for item in token.alternatives] == best.indices.tolist()
        assert [item.logprob for item in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_scores_and_vectors_of_a_mixed_batch_equal_the_oracle(
    base: Path,
    adapters: dict[str, Path],
    expected: dict[str | None, Expected],
    settings: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompt_reading, "MAX_LOGIT_ROWS", 7)
    engine = make_engine(base, adapters, **settings)
    # Twice, so that the second turn finds the prompts of the first in the prefix cache; and plain ones between.
    for turn in range(2):
        for name in expected:
            for number, prompt in enumerate(PROMPTS):
                wants = SamplingParams(max_new_tokens=20, ignore_eos=True, num_prompt_logprobs=2)
                plain = SamplingParams(max_new_tokens=20, ignore_eos=True)
                key = f"{name} {number} {turn}"
                engine.add_request(GenerationRequest(f"{key} scores", tuple(prompt), wants, name))
                engine.add_request(GenerationRequest(f"{key} plain", tuple(prompt), plain, name))
                for pooling in Pooling:
                    request = GenerationRequest(f"{key} {pooling}", tuple(prompt), adapter=name, pooling=pooling)
                    engine.add_request(request)
        first: dict[str, TokenOutput] = {}
        tokens: dict[str, list[int | None]] = {}
        for output in run(engine):
            first.setdefault(output.request_id, output)
            tokens.setdefault(output.request_id, []).append(output.token_id)
        for name, oracle in expected.items():
            for number, prompt in enumerate(PROMPTS):
                key = f"{name} {number} {turn}"
                assert tokens[f"{key} scores"] == tokens[f"{key} plain"]
                assert not first[f"{key} plain"].prompt
                check_scores(first[f"{key} scores"], prompt, oracle.logprobs[number])
                last, mean = (first[f"{key} {pooling}"] for pooling in Pooling)
                hidden = oracle.hidden[number]
                assert last.finish_reason is mean.finish_reason is FinishReason.EMBEDDED
                assert last.vector is not None
                assert mean.vector is not None
                torch.testing.assert_close(torch.tensor(last.vector), hidden[-1], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(torch.tensor(mean.vector), hidden.mean(0), atol=1e-4, rtol=1e-4)


def test_the_prompt_comes_with_the_first_token_alone(base: Path) -> None:
    engine = make_engine(base, {})
    wants = SamplingParams(max_new_tokens=3, ignore_eos=True, num_prompt_logprobs=0)
    engine.add_request(GenerationRequest("r", tuple(PROMPTS[0]), wants))
    outputs = run(engine)
    assert [len(output.prompt) for output in outputs] == [len(PROMPTS[0]), 0, 0]
    assert all(not token.alternatives for token in outputs[0].prompt)
    assert [output.queue_s is None for output in outputs] == [False, True, True]


@pytest.mark.parametrize("settings", [SETTINGS["chunks"], SETTINGS["preemption"]], ids=["chunks", "preemption"])
def test_scores_leave_the_engine_as_they_are_read(
    base: Path, expected: dict[str | None, Expected], settings: dict[str, object]
) -> None:
    engine = make_engine(base, {}, **settings)
    streams = {
        str(number): TokenStream(str(number), on_end=lambda: None, on_close=lambda stream: None)
        for number in range(len(PROMPTS) * 2)
    }
    for name in streams:
        wants = SamplingParams(max_new_tokens=20, ignore_eos=True, num_prompt_logprobs=2)
        engine.add_request(GenerationRequest(name, tuple(PROMPTS[int(name) % len(PROMPTS)]), wants))
    first: dict[str, TokenOutput] = {}
    while engine.has_unfinished():
        outputs = engine.step()
        for part in engine.prompt_parts():
            assert len(part.scores.logprobs) <= 5
            streams[part.request_id].feed_prompt(part.scores)
        for output in outputs:
            assert len(output.prompt) <= 6
            streams[output.request_id].feed(output)
            first.setdefault(output.request_id, streams[output.request_id]._arrived.get_nowait())  # type: ignore[arg-type]
    for name, output in first.items():
        number = int(name) % len(PROMPTS)
        check_scores(output, PROMPTS[number], expected[None].logprobs[number])
    assert len(first) == len(streams)


def test_scores_are_arrays_which_the_engine_does_not_keep(base: Path) -> None:
    engine = make_engine(base, {})
    wants = SamplingParams(max_new_tokens=3, ignore_eos=True, num_prompt_logprobs=2)
    engine.add_request(GenerationRequest("r", tuple(PROMPTS[0]), wants))
    (output,) = engine.step()
    reading = engine._sequences["r"].reading
    assert isinstance(output.prompt, ScoredPrompt)
    assert len(output.prompt) == len(PROMPTS[0])
    assert isinstance(reading, PromptScores)
    assert len(reading.hand_over().logprobs) == 0
    run(engine)


@pytest.mark.parametrize("settings", [*SETTINGS.values(), {"speculative_tokens": 3}], ids=[*SETTINGS, "guesses"])
def test_a_request_for_no_tokens_reads_its_prompt_and_ends(
    base: Path, expected: dict[str | None, Expected], settings: dict[str, object]
) -> None:
    engine = make_engine(base, {}, **settings)
    for number, prompt in enumerate(PROMPTS * 2):
        for name, wanted in (("scored", 2), ("plain", None)):
            wants = SamplingParams(max_new_tokens=0, num_prompt_logprobs=wanted)
            engine.add_request(GenerationRequest(f"{name} {number}", tuple(prompt), wants))
    outputs = {output.request_id: output for output in run(engine)}
    assert len(outputs) == 4 * len(PROMPTS)
    for output in outputs.values():
        assert (output.token_id, output.finish_reason) == (None, FinishReason.LENGTH)
        assert output.num_cached is not None
    for number, prompt in enumerate(PROMPTS * 2):
        check_scores(outputs[f"scored {number}"], prompt, expected[None].logprobs[number % len(PROMPTS)])
        assert not outputs[f"plain {number}"].prompt


def test_a_prompt_that_fills_the_model_is_read_where_nothing_is_to_follow(base: Path) -> None:
    engine = make_engine(base, {}, max_model_len=40)
    wants = SamplingParams(max_new_tokens=0, num_prompt_logprobs=0)
    engine.add_request(GenerationRequest("r", tuple(range(40)), wants))
    (output,) = run(engine)
    assert len(output.prompt) == 40
    with pytest.raises(InvalidRequest, match="max_new_tokens is -1, it must be at least 0"):
        SamplingParams(max_new_tokens=-1)


def test_no_more_rows_of_logits_are_made_at_once_than_stated(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(base, {}, max_batched_tokens=256)
    sizes: list[int] = []
    model = engine._runner._model
    plain = model.head
    monkeypatch.setattr(
        model,
        "head",
        lambda hidden, lora: sizes.append(hidden.shape[0]) or plain(hidden, lora),  # type: ignore[func-returns-value]
    )
    wants = SamplingParams(max_new_tokens=1, num_prompt_logprobs=0)
    engine.add_request(GenerationRequest("r", tuple(range(90)) * 2, wants))
    (output,) = run(engine)
    assert len(output.prompt) == 180
    assert sizes == [prompt_reading.MAX_LOGIT_ROWS] * 2 + [179 - 2 * prompt_reading.MAX_LOGIT_ROWS, 1]


def test_a_vector_of_a_prompt_as_long_as_the_model_allows(base: Path) -> None:
    engine = make_engine(base, {}, max_model_len=40)
    engine.add_request(GenerationRequest("r", tuple(range(40)), pooling=Pooling.LAST))
    (output,) = run(engine)
    assert output.vector is not None
    assert len(output.vector) == engine.hidden_size
    with pytest.raises(InvalidRequest, match="41 tokens, it may have 40"):
        engine.add_request(GenerationRequest("r", tuple(range(41)), pooling=Pooling.LAST))


def test_values_that_are_not_finite_end_the_request_and_leave_nothing_behind(tmp_path: Path) -> None:
    model = write_llama(tmp_path)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = math.nan
    model.save_pretrained(tmp_path)
    engine = make_engine(tmp_path, {})
    wants = SamplingParams(max_new_tokens=2, ignore_eos=True, num_prompt_logprobs=0)
    engine.add_request(GenerationRequest("scores", (1, 2, 5, 3, 4, 6, 7, 8), wants))
    engine.add_request(GenerationRequest("vector", (1, 2, 5, 3, 4, 6, 7, 8), pooling=Pooling.MEAN))
    engine.add_request(GenerationRequest("fine", (1, 2, 3), wants))
    outputs = run(engine)
    failed = {output.request_id for output in outputs if output.finish_reason is FinishReason.ERROR}
    assert failed == {"scores", "vector"}
    assert all("not finite" in (output.error or "") for output in outputs if output.request_id in failed)
    assert sum(output.request_id == "fine" for output in outputs) == 2
