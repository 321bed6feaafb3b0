"""The engine process while an adapter is read: it goes on, ends when it is told to, and not only then."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.messages import (
    AdapterLoaded,
    EngineCommand,
    EngineEvent,
    EngineReady,
    EngineStats,
    Generate,
    LoadAdapter,
    Shutdown,
    Tokens,
)
from lorafleet_serving.engine.process import engine_main
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from tests.serving.random_model import write_adapter, write_llama

_LIMIT_S = 60.0
_STEP_LIMIT_S = 2.0


class EngineProcess:
    """An engine process, its pipe, and an adapter whose config comes when somebody writes it."""

    def __init__(self, process: BaseProcess, pipe: Connection, folder: Path) -> None:
        self.process = process
        self._pipe = pipe
        self._folder = folder
        self._config = (folder / "adapter_config.json").read_text()
        (folder / "adapter_config.json").unlink()
        os.mkfifo(folder / "adapter_config.json")

    def send(self, command: EngineCommand) -> None:
        self._pipe.send(command)

    def load(self) -> None:
        """Begin to load the adapter."""
        self.send(LoadAdapter("slow", str(self._folder)))

    def write_config(self) -> None:
        """Let the adapter be read; waits until it is."""
        (self._folder / "adapter_config.json").write_text(self._config)

    def await_event(self, kind: type[EngineEvent]) -> EngineEvent:
        """The next event that does not only tell how the engine is."""
        while True:
            assert self._pipe.poll(_LIMIT_S), f"no {kind.__name__}"
            event: EngineEvent = self._pipe.recv()
            if not isinstance(event, EngineStats):
                assert isinstance(event, kind)
                return event


@contextmanager
def _engine(folder: Path, step_limit_s: float) -> Iterator[EngineProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    config = EngineConfig(folder / "base", dtype=DType.FP32, kv_cache_bytes=8 << 20, step_limit_s=step_limit_s)
    process = context.Process(target=engine_main, args=(theirs, config))
    process.start()
    theirs.close()
    try:
        engine = EngineProcess(process, ours, shutil.copytree(folder / "adapter", folder / "slow"))
        engine.await_event(EngineReady)
        yield engine
    finally:
        process.kill()
        process.join()
        ours.close()
        shutil.rmtree(folder / "slow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and an adapter."""
    root = tmp_path_factory.mktemp("process-loads")
    write_llama(root / "base")
    write_adapter(root / "base", root / "adapter")
    return root


def _generate(engine: EngineProcess, name: str, adapter: str | None = None) -> int:
    sampling = SamplingParams(max_new_tokens=20, ignore_eos=True)
    engine.send(Generate(GenerationRequest(name, (3, 4, 5), sampling, adapter)))
    num_tokens = 0
    while True:
        event = engine.await_event(Tokens)
        assert isinstance(event, Tokens)
        num_tokens += sum(output.token_id is not None for output in event.outputs)
        if any(output.finish_reason is not None for output in event.outputs):
            return num_tokens


def test_answers_go_on_while_an_adapter_is_read_and_an_idle_engine_takes_it(folder: Path) -> None:
    with _engine(folder, _LIMIT_S) as engine:
        engine.load()
        assert _generate(engine, "beside") == 20
        engine.write_config()
        loaded = engine.await_event(AdapterLoaded)
        assert isinstance(loaded, AdapterLoaded)
        assert loaded.digest == "slow"
        assert _generate(engine, "with it", "slow") == 20
        engine.send(Shutdown())
        engine.process.join(_LIMIT_S)
        assert engine.process.exitcode == 0


def test_an_engine_ends_while_an_adapter_is_read(folder: Path) -> None:
    with _engine(folder, _LIMIT_S) as engine:
        engine.load()
        assert _generate(engine, "beside") == 20
        engine.send(Shutdown())
        engine.process.join(_LIMIT_S)
        assert engine.process.exitcode == 0


@pytest.mark.faults
def test_an_adapter_that_cannot_be_read_to_its_end_ends_the_process(folder: Path) -> None:
    with _engine(folder, _STEP_LIMIT_S) as engine:
        engine.load()
        engine.process.join(_LIMIT_S)
        assert engine.process.exitcode == 1
