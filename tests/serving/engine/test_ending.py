"""Requests that are given up, by their caller or by the clock, in every state: what they held is free at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.constraint import Constraint, ConstraintKind
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenOutput
from tests.serving.random_model import write_adapter, write_llama

BLOCK_BYTES = 2 * 2 * 2 * 8 * 4 * 4
"""Keys and values of two layers, two heads of eight fp32, four tokens."""
STATES = ["waiting", "compiling", "prefilling", "decoding", "paused", "preempted"]
LIMIT_S = 60.0


class HeldCompiler:
    """A tokenizer that constraints wait for as long as a test wants: they are being compiled, and go on to be."""

    def __init__(self) -> None:
        self.began = Event()
        self.goes_on = Event()

    def read_tokenizer(self, _: Path) -> str:
        self.began.set()
        assert self.goes_on.wait(LIMIT_S), "nobody let the compiler go on"
        raise ValueError("it is let go to end, not to compile")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapter"), 1, r=2)


@pytest.fixture(scope="module")
def adapter_bytes(base: Path, adapter: Path) -> int:
    return Engine(EngineConfig(base, dtype=DType.FP32, kv_cache_bytes=1 << 20)).load_adapter("a", adapter)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldCompiler]:
    held = HeldCompiler()
    monkeypatch.setattr("lorafleet_serving.engine.engine.read_tokenizer", held.read_tokenizer)
    yield held
    held.goes_on.set()


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest) -> str:
    """What the second of two requests is in when it ends."""
    return str(request.param)


@pytest.fixture
def engine(base: Path, adapter: Path, adapter_bytes: int, compiler: HeldCompiler, state: str) -> Engine:
    """One in which requests come into a state."""
    config = EngineConfig(
        base,
        dtype=DType.FP32,
        block_size=4,
        kv_cache_bytes=(13 if state == "preempted" else 101) * BLOCK_BYTES,
        max_num_seqs=1 if state == "waiting" else 4,
        max_batched_tokens=4,
        adapter_device_bytes=adapter_bytes * (1 if state == "paused" else 2),
    )
    engine = Engine(config)
    for digest in ("a", "b"):
        engine.load_adapter(digest, adapter)
    return engine


def request(
    name: str, first_token: int, adapter: str, deadline: float | None = None, *, bound: bool = False
) -> GenerationRequest:
    constraint = Constraint(ConstraintKind.REGEX, "a+") if bound else None
    sampling = SamplingParams(max_new_tokens=30, ignore_eos=True, constraint=constraint)
    prompt = tuple(range(first_token, first_token + 14))
    return GenerationRequest(name, prompt, sampling, adapter, deadline=deadline)


def bring_into(engine: Engine, state: str, compiler: HeldCompiler) -> None:
    """Step until the second of two requests is in a state."""
    match state:
        case "waiting":
            engine.step()
            assert engine.stats().num_waiting == 1
        case "compiling":
            assert compiler.began.wait(LIMIT_S)
            engine.step()
            assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 0)
        case "prefilling":
            while engine.stats().num_running < 2:
                engine.step()
        case "decoding":
            while not any(output.request_id == "ends" for output in engine.step()):
                pass
        case "paused":
            # The first pause is the other's, which makes way for it.
            while engine.stats().num_adapter_pauses < 2:
                engine.step()
            assert (engine.stats().num_running, engine.stats().device_adapters) == (2, ("a",))
        case _:
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


def test_cancelled_request_is_gone_within_one_step(engine: Engine, state: str, compiler: HeldCompiler) -> None:
    engine.add_request(request("stays", 1, "a"))
    engine.add_request(request("ends", 40, "b", bound=state == "compiling"))
    bring_into(engine, state, compiler)
    engine.abort("ends")
    check_only_the_other_is_left(engine, engine.step(), FinishReason.ABORTED)


def test_request_past_its_deadline_is_gone_within_one_step(
    engine: Engine, state: str, compiler: HeldCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadline = time.monotonic() + 3600
    engine.add_request(request("stays", 1, "a", deadline + 3600))
    engine.add_request(request("ends", 40, "b", deadline, bound=state == "compiling"))
    bring_into(engine, state, compiler)
    monkeypatch.setattr("lorafleet_serving.engine.deadlines.time.monotonic", lambda: deadline)
    outputs = engine.step()
    assert [output.error for output in outputs if output.finish_reason is FinishReason.EXPIRED]
    check_only_the_other_is_left(engine, outputs, FinishReason.EXPIRED)


@pytest.mark.parametrize("state", ["compiling"])
def test_constraint_compiled_too_late_is_answered_to_nobody(engine: Engine, state: str, compiler: HeldCompiler) -> None:
    engine.add_request(request("stays", 1, "a"))
    engine.add_request(request("ends", 40, "b", bound=True))
    bring_into(engine, state, compiler)
    engine.abort("ends")
    engine.add_request(request("next", 40, "b", bound=True))
    compiler.goes_on.set()
    outputs: list[TokenOutput] = []
    # One is compiled at a time: with the next one, that of nobody has been.
    while not any(output.request_id == "next" for output in outputs):
        outputs += engine.step()
    assert [output.finish_reason for output in outputs if output.request_id == "ends"] == [FinishReason.ABORTED]
    assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 0)
    engine.check_integrity()


@pytest.mark.parametrize("state", ["waiting"])
def test_deadline_in_the_past_ends_a_request_before_it_is_computed(engine: Engine) -> None:
    engine.add_request(request("ends", 1, "a", time.monotonic() - 1))
    assert [output.finish_reason for output in engine.step()] == [FinishReason.EXPIRED]
    assert engine.stats().num_steps == 0
    assert not engine.has_unfinished()
