"""A runner keeps its component running, and tells what it does."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_contract.backoff import Backoff
from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack import component as component_module, runner as runner_module
from lorafleet_pipeline.stack.component import Component, ComponentPlan
from lorafleet_pipeline.stack.runner import ComponentRunner
from lorafleet_pipeline.stack.state import ComponentState, ComponentStatus

_SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
_LIMIT_S = 30.0


class Board:
    """Collects what runners tell, and lets a test wait for it."""

    def __init__(self) -> None:
        self.stop_requested = threading.Event()
        self.told: list[ComponentStatus] = []
        self._changed = threading.Condition()
        self._runners: list[ComponentRunner] = []

    def start(self, *plans: ComponentPlan) -> list[ComponentRunner]:
        self._runners = [ComponentRunner(plan, self._report, self.stop_requested) for plan in plans]
        for runner in self._runners:
            runner.connect(self._runners)
        for runner in self._runners:
            runner.start()
        return self._runners

    def stop(self) -> None:
        self.stop_requested.set()
        for runner in self._runners:
            runner.join(_LIMIT_S)
            assert not runner.is_alive()

    def wait_for(self, condition: Callable[[ComponentStatus], bool]) -> ComponentStatus:
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(condition, self.told)), _LIMIT_S), self.told
            return next(status for status in self.told if condition(status))

    def wait_state(self, name: str, state: ComponentState) -> ComponentStatus:
        return self.wait_for(lambda status: (status.name, status.state) == (name, state))

    def states(self, name: str) -> list[ComponentState]:
        return [status.state for status in self.told if status.name == name]

    def _report(self, status: ComponentStatus) -> None:
        with self._changed:
            self.told.append(status)
            self._changed.notify_all()


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.stop()


@pytest.fixture
def plan(tmp_path: Path) -> ComponentPlan:
    return ComponentPlan(
        name="sleeper",
        command=_SLEEP,
        environment=dict(os.environ),
        folder=tmp_path / "folder",
        log=tmp_path / "logs" / "sleeper.log",
        probe=lambda since: None,
    )


def test_component_waits_for_what_it_requires(board: Board, plan: ComponentPlan) -> None:
    gate = threading.Event()
    first = replace(plan, name="first", probe=lambda since: None if gate.is_set() else "not yet")
    second = replace(plan, name="second", requires=frozenset({"first"}))
    board.start(first, second)
    board.wait_for(lambda status: status.name == "second" and status.detail == "for first to be ready")
    assert ComponentState.STARTING not in board.states("second")
    gate.set()
    board.wait_state("second", ComponentState.READY)


def test_component_starts_once_the_other_is_prepared(board: Board, plan: ComponentPlan) -> None:
    first = replace(plan, name="first", prepare=(sys.executable, "-c", ""), probe=lambda since: "never")
    board.start(first, replace(plan, name="second", after_prepared=frozenset({"first"})))
    board.wait_state("second", ComponentState.READY)
    assert ComponentState.PREPARING in board.states("first")


def test_component_outlives_those_that_use_it(board: Board, plan: ComponentPlan) -> None:
    board.start(replace(plan, name="first"), replace(plan, name="second", requires=frozenset({"first"})))
    board.wait_state("second", ComponentState.READY)
    board.stop()
    ends = [(status.name, status.state) for status in board.told]
    assert ends.index(("second", ComponentState.STOPPED)) < ends.index(("first", ComponentState.STOPPING))


def test_killed_component_is_started_again_and_the_cause_told(board: Board, plan: ComponentPlan) -> None:
    board.start(plan)
    first = board.wait_state("sleeper", ComponentState.READY)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    told = board.wait_state("sleeper", ComponentState.BACKING_OFF)
    assert told.detail == f"sleeper ended unexpectedly: signal 9 (see {plan.log})"
    second = board.wait_for(lambda status: status.state is ComponentState.READY and status.restarts == 1)
    assert second.pid not in (None, first.pid)


def test_component_that_ended_for_hours_is_started_again(
    board: Board, plan: ComponentPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_BACKOFF", Backoff(first_s=1e-9, longest_s=0.01))
    (runner,) = board.start(plan)
    first = board.wait_state("sleeper", ComponentState.READY)
    assert first.pid is not None
    runner._failures = 5000
    os.kill(first.pid, signal.SIGKILL)
    board.wait_for(lambda status: status.state is ComponentState.READY and status.restarts == 1)


def test_component_that_never_starts_is_given_up_with_its_last_words(board: Board, plan: ComponentPlan) -> None:
    failing = (sys.executable, "-c", "print('first line'); raise SystemExit('no such table: jobs')")
    board.start(replace(plan, command=failing, probe=lambda since: "silent"))
    failed = board.wait_state("sleeper", ComponentState.FAILED)
    assert failed.restarts == 2
    assert failed.detail == f"sleeper ended at start (exit status 1): no such table: jobs (see {plan.log})"


def test_component_that_the_system_cannot_start_is_tried_again(board: Board, plan: ComponentPlan) -> None:
    board.start(replace(plan, command=("/no/such/program",)))
    failed = board.wait_state("sleeper", ComponentState.FAILED)
    assert failed.restarts == 2
    assert "No such file or directory: '/no/such/program'" in failed.detail


def test_failed_preparation_is_not_repeated(board: Board, plan: ComponentPlan) -> None:
    board.start(replace(plan, prepare=(sys.executable, "-c", "raise SystemExit('disk full')")))
    failed = board.wait_state("sleeper", ComponentState.FAILED)
    assert failed.restarts == 0
    assert "could not be prepared (exit status 1): disk full" in failed.detail


def test_component_that_stops_answering_is_told_and_restarted(
    board: Board, plan: ComponentPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_PROBE_EVERY_S", 0.05)
    monkeypatch.setattr(runner_module, "_SILENCE_LIMIT_S", 5.0)
    silent = threading.Event()
    board.start(replace(plan, probe=lambda since: "no answer" if silent.is_set() else None))
    first = board.wait_state("sleeper", ComponentState.READY)
    silent.set()
    assert board.wait_state("sleeper", ComponentState.UNHEALTHY).detail == "no answer"
    told = board.wait_state("sleeper", ComponentState.BACKING_OFF)
    assert "has not been healthy for" in told.detail
    silent.clear()
    board.wait_for(lambda status: status.state is ComponentState.READY and status.pid != first.pid)


def test_fault_of_the_runner_itself_is_a_failure_that_is_told(board: Board, plan: ComponentPlan) -> None:
    def probe(since: float) -> str | None:
        raise RuntimeError("a bug")

    board.start(replace(plan, probe=probe))
    assert board.wait_state("sleeper", ComponentState.FAILED).detail == "the supervisor failed: a bug"


def test_stop_cuts_a_long_preparation_short(board: Board, plan: ComponentPlan) -> None:
    board.start(replace(plan, prepare=_SLEEP))
    board.wait_state("sleeper", ComponentState.PREPARING)
    board.stop()
    assert board.states("sleeper")[-1] is ComponentState.STOPPED


def test_large_log_is_put_aside_while_its_process_writes_on(plan: ComponentPlan) -> None:
    lines = f"import sys, time; sys.stdout.write('x' * {32 << 20}); sys.stdout.flush(); time.sleep(60)"
    component = Component(replace(plan, command=(sys.executable, "-c", lines)))
    component.start()
    while plan.log.stat().st_size < 32 << 20:
        component.exit_code(0.05)
    component.trim_log()
    assert plan.log.stat().st_size == 0
    assert plan.log.with_name("sleeper.log.1").stat().st_size == 32 << 20
    component.stop()


def test_large_log_is_emptied_where_the_disk_holds_no_copy(
    plan: ComponentPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component_module, "_LOG_LIMIT_BYTES", 10)
    plan.log.parent.mkdir()
    plan.log.write_text("more than ten bytes")
    monkeypatch.setattr(shutil, "copyfile", _no_space)
    Component(plan).trim_log()
    assert plan.log.read_text() == ""
    assert list(plan.log.parent.iterdir()) == [plan.log]


def _no_space(source: Path, target: Path) -> None:
    target.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_answer_of_another_server_on_the_port_is_not_readiness(plan: ComponentPlan) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        url = f"http://127.0.0.1:{stranger.getsockname()[1]}"
        component = Component(replace(plan, url=url, start_limit_s=1.0))
        component.start()
        try:
            with pytest.raises(StackError, match=r"port \d+ is answered by another process"):
                component.wait_ready()
        finally:
            component.stop()
