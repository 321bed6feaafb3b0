"""Requests that are given up, by their caller or by the clock, in every state: what they held is free at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenOutput
from tests.serving.random_model import write_adapter, write_llama

BLOCK_BYTES = 2 * 2 * 2 * 8 * 4 * 4
"""Keys and values of two layers, two heads of eight fp32, four tokens."""
STATES = ["waiting", "prefilling", "decoding", "preempted"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapter"), 1, r=2)


def make_engine(base: Path, adapter: Path, state: str) -> Engine:
    config = EngineConfig(
        base,
        dtype=DType.FP32,
        block_size=4,
        kv_cache_bytes=(13 if state == "preempted" else 101) * BLOCK_BYTES,
        max_num_seqs=1 if state == "waiting" else 4,
        max_batched_tokens=4,
    )
    engine = Engine(config)
    for digest in ("a", "b"):
        engine.load_adapter(digest, adapter)
    return engine


def request(name: str, first_token: int, adapter: str, deadline: float | None = None) -> GenerationRequest:
    sampling = SamplingParams(max_new_tokens=30, ignore_eos=True)
    prompt = tuple(range(first_token, first_token + 14))
    return GenerationRequest(name, prompt, sampling, adapter, deadline=deadline)


def bring_into(engine: Engine, state: str) -> None:
    """Step until the second of two requests is in a state."""
    if state == "waiting":
        engine.step()
        assert engine.stats().num_waiting == 1
    elif state == "prefilling":
        while engine.stats().num_running < 2:
            engine.step()
    elif state == "decoding":
        while not any(output.request_id == "ends" for output in engine.step()):
            pass
    else:
        while engine.stats().num_preemptions == 0:
            engine.step()
        assert engine.stats().num_waiting == 1


def check_only_the_other_is_left(engine: Engine, outputs: list[TokenOutput], reason: FinishReason) -> None:
    assert [output.finish_reason for output in outputs if output.request_id == "ends"] == [reason]
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (1, 0)
    assert engine.unload_adapter("b"), "the adapter is still held"
    engine.check_integrity()
    engine.abort("stays")
    engine.step()
    assert engine.stats().num_free_blocks == engine.stats().num_kv_blocks
    assert engine.unload_adapter("a")
    assert not engine.has_unfinished()


@pytest.mark.parametrize("state", STATES)
def test_cancelled_request_is_gone_within_one_step(base: Path, adapter: Path, state: str) -> None:
    engine = make_engine(base, adapter, state)
    engine.add_request(request("stays", 1, "a"))
    engine.add_request(request("ends", 40, "b"))
    bring_into(engine, state)
    engine.abort("ends")
    check_only_the_other_is_left(engine, engine.step(), FinishReason.ABORTED)


@pytest.mark.parametrize("state", STATES)
def test_request_past_its_deadline_is_gone_within_one_step(
    base: Path, adapter: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(base, adapter, state)
    deadline = time.monotonic() + 3600
    engine.add_request(request("stays", 1, "a", deadline + 3600))
    engine.add_request(request("ends", 40, "b", deadline))
    bring_into(engine, state)
    monkeypatch.setattr("lorafleet_serving.engine.deadlines.time.monotonic", lambda: deadline)
    outputs = engine.step()
    assert [output.error for output in outputs if output.finish_reason is FinishReason.EXPIRED]
    check_only_the_other_is_left(engine, outputs, FinishReason.EXPIRED)


def test_deadline_in_the_past_ends_a_request_before_it_is_computed(base: Path, adapter: Path) -> None:
    engine = make_engine(base, adapter, "waiting")
    engine.add_request(request("ends", 1, "a", time.monotonic() - 1))
    assert [output.finish_reason for output in engine.step()] == [FinishReason.EXPIRED]
    assert engine.stats().num_steps == 0
    assert not engine.has_unfinished()
