"""Guessed tokens: answers come in fewer steps and are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.constraint import Constraint, ConstraintKind
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, Pooling, SamplingParams, TokenOutput
from tests.serving.conftest import SourceFactory

PROMPTS = [tuple(range(10, 20)) * 3, (7,) * 20, (60, 3, 8, 21, 34, 55, 8, 21, 34, 12)]
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.7, "seed": 5, "top_k": 3},
    "repeating": {"temperature": 0.3, "seed": 6, "frequency_penalty": -2.0},
    "penalized": {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    "stopping": {"stop_token_ids": tuple(range(30, 40)), "min_new_tokens": 9},
    "scored": {"num_logprobs": 2, "num_prompt_logprobs": 1},
    "biased": {"logit_bias": ((17, 8.0), (18, 8.0)), "temperature": 1.0, "seed": 1},
    "bound": {"constraint": Constraint(ConstraintKind.REGEX, "(the cat sat on the mat, ){3,9}")},
}


def make_engine(model: Path, **settings: Any) -> Engine:
    return Engine(EngineConfig(model, dtype=DType.FP32, num_threads=2, **({"kv_cache_bytes": 4 << 20} | settings)))


def requests(adapters: list[str | None]) -> list[GenerationRequest]:
    made = []
    for number, (name, options) in enumerate(SAMPLINGS.items()):
        sampling = SamplingParams(**({"max_new_tokens": 40, "ignore_eos": True} | options))
        for prompt in PROMPTS:
            adapter = adapters[number % len(adapters)]
            made.append(GenerationRequest(f"{name}-{prompt[0]}", prompt, sampling, adapter))
    return made


def answers(engine: Engine, asked: list[GenerationRequest]) -> dict[str, list[TokenOutput]]:
    for request in asked:
        engine.add_request(request)
    outputs: dict[str, list[TokenOutput]] = {request.request_id: [] for request in asked}
    while engine.has_unfinished():
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
    assert engine.stats().num_free_blocks == engine.stats().num_kv_blocks
    return outputs


def told(outputs: list[TokenOutput]) -> list[tuple[object, ...]]:
    """What of an answer must be the same."""
    return [
        (output.token_id, output.finish_reason, output.error, [item.token_id for item in output.alternatives])
        for output in outputs
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"speculative_tokens": 1},
        {"max_num_seqs": 1},
        {"block_size": 4},
        {"kv_cache_bytes": 2 * 2 * 2 * 16 * 4 * 164, "block_size": 4, "max_model_len": 80},
        {"prefix_caching": False, "max_batched_tokens": 32, "max_num_seqs": 24},
    ],
    ids=["default", "one", "alone", "tiny-blocks", "preemption", "no-prefix-cache"],
)
def test_guesses_change_no_answer(tiny_model: Path, tiny_adapter: SourceFactory, settings: dict[str, Any]) -> None:
    plain = make_engine(tiny_model)
    guessing = make_engine(tiny_model, **({"speculative_tokens": 4} | settings))
    for engine in (plain, guessing):
        for seed in (1, 2):
            engine.load_adapter(str(seed), tiny_adapter(seed).folder)
    asked = requests([None, "1", "2"])
    expected, found = answers(plain, asked), answers(guessing, asked)
    assert {name: told(outputs) for name, outputs in found.items()} == {
        name: told(outputs) for name, outputs in expected.items()
    }
    for name, outputs in expected.items():
        logprobs = [output.logprob for output in outputs]
        assert [output.logprob for output in found[name]] == pytest.approx(logprobs, abs=1e-4), name
        assert [token.logprob for token in found[name][0].prompt] == pytest.approx(
            [token.logprob for token in outputs[0].prompt], abs=1e-4
        )
    if settings.get("kv_cache_bytes"):
        assert guessing.stats().num_preemptions > 0
    else:
        assert max(len(outputs) for outputs in expected.values()) == 40


def test_answers_that_repeat_take_fewer_steps(tiny_model: Path) -> None:
    engine = make_engine(tiny_model, speculative_tokens=4)
    sampling = SamplingParams(max_new_tokens=120, ignore_eos=True, logit_bias=((17, 100.0),))
    outputs = answers(engine, [GenerationRequest("a", PROMPTS[2], sampling)])["a"]
    assert [output.token_id for output in outputs] == [17] * 120
    # Five tokens a step, but for the steps at a block's end, which leaves less room.
    assert engine.stats().num_steps < 45


def test_a_vector_needs_no_guess(tiny_model: Path) -> None:
    engine = make_engine(tiny_model, speculative_tokens=4)
    plain = make_engine(tiny_model)
    asked = [replace(request, pooling=Pooling.MEAN) for request in requests([None])[:3]]
    found, expected = answers(engine, asked), answers(plain, asked)
    for name, (output,) in found.items():
        assert list(output.vector or []) == pytest.approx(list(expected[name][0].vector or []), abs=1e-5)


def test_an_abort_between_guesses_gives_everything_back(tiny_model: Path) -> None:
    engine = make_engine(tiny_model, speculative_tokens=4)
    for request in requests([None]):
        engine.add_request(request)
    for request in requests([None]):
        engine.step()
        engine.abort(request.request_id)
        engine.check_integrity()
    while engine.has_unfinished():
        engine.step()
    assert engine.stats().num_free_blocks == engine.stats().num_kv_blocks
