"""The engine process's loop: a step that hangs ends the process, and one that does not is left alone."""

from __future__ import annotations

import multiprocessing
import queue
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import pytest

from lorafleet_serving.engine.adapter_pool import AdapterPool
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.load_queue import LoadQueue
from lorafleet_serving.engine.messages import EngineStats, Generate, PromptPart, Shutdown
from lorafleet_serving.engine.process import EngineLoop, Inbox
from lorafleet_serving.engine.request import GenerationRequest, TokenOutput

_LIMIT_S = 2.0


class SlowEngine:
    """Takes a given time for its one step."""

    base_digest = ""
    hidden_size = 8
    item_bytes = 2
    max_model_len = 1

    def __init__(self, step_s: float) -> None:
        self.config = EngineConfig(model=Path(), step_limit_s=_LIMIT_S)
        self._step_s = step_s
        self._has_work = False

    def add_request(self, request: GenerationRequest) -> None:
        self._has_work = True

    def has_unfinished(self) -> bool:
        return self._has_work

    def step(self) -> list[TokenOutput]:
        time.sleep(self._step_s)
        self._has_work = False
        return []

    def prompt_parts(self) -> list[PromptPart]:
        return []

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 1, 1, (), (), 0)


def run_loop(pipe: Connection, step_s: float, idle_s: float, end_s: float) -> None:
    inbox: Inbox = queue.SimpleQueue()
    inbox.put(Generate(GenerationRequest("slow", (1,))))
    if not idle_s:
        inbox.put(Shutdown())
    # It gets no order, so that it asks no pool.
    loads = LoadQueue(cast("AdapterPool", None), inbox.put, pipe.send)
    loop = EngineLoop(cast("Engine", SlowEngine(step_s)), loads, pipe, inbox)
    if idle_s:
        import threading

        threading.Timer(idle_s, inbox.put, (Shutdown(),)).start()
    loop.run()
    time.sleep(end_s)


def _exit_code(step_s: float, idle_s: float = 0.0, end_s: float = 0.0) -> int | None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_loop, args=(theirs, step_s, idle_s, end_s))
    process.start()
    process.join(60)
    ours.close()
    theirs.close()
    return process.exitcode


def test_a_step_that_hangs_ends_the_process(capfd: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(step_s=3600.0) == 1
    told = capfd.readouterr().err
    assert "Timeout" in told
    assert "in step" in told, "the stacks are not in the log"


def test_an_engine_that_has_nothing_to_do_for_long_is_left_alone() -> None:
    assert _exit_code(step_s=0.0, idle_s=2 * _LIMIT_S) == 0


def test_a_process_that_takes_long_to_end_is_left_alone() -> None:
    assert _exit_code(step_s=0.0, end_s=2 * _LIMIT_S) == 0
