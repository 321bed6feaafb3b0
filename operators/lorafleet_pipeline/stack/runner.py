"""Keeps one component running: waits for what it needs, starts it, watches it, restarts it, stops it.

Each runner is a thread of the supervisor. Stopping goes backwards: a component outlives those that use it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from lorafleet_contract.backoff import Backoff
from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.component import Component, ComponentPlan
from lorafleet_pipeline.stack.state import ComponentState, ComponentStatus

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_PROBE_EVERY_S = 5.0
_FAILED_PROBES_TO_TELL = 3
_SILENCE_LIMIT_S = 180.0
_FIRST_STARTS = 3
_BACKOFF = Backoff(first_s=1.0, longest_s=30.0)
_SETTLED_S = 60.0

Report = Callable[[ComponentStatus], None]


class ComponentRunner(threading.Thread):
    """The life of one component, told step by step through `report`."""

    def __init__(self, plan: ComponentPlan, report: Report, stop_requested: threading.Event) -> None:
        super().__init__(name=plan.name, daemon=True)
        self.prepared = threading.Event()
        self.ready = threading.Event()
        self.status = ComponentStatus(plan.name, ComponentState.WAITING, str(plan.log), url=plan.url)
        self._plan = plan
        self._component = Component(plan, stop_requested)
        self._report = report
        self._stop_requested = stop_requested
        self._failures = 0
        self._conditions: list[tuple[str, threading.Event]] = []
        self._dependents: list[ComponentRunner] = []

    def connect(self, runners: Sequence[ComponentRunner]) -> None:
        """Learn what to wait for at start, and whose end to wait for at stop."""
        for other in runners:
            if other.name in self._plan.requires:
                self._conditions.append((f"{other.name} to be ready", other.ready))
            if other.name in self._plan.after_prepared:
                self._conditions.append((f"{other.name} to be prepared", other.prepared))
            if self.name in other._plan.requires | other._plan.after_prepared:
                self._dependents.append(other)

    def run(self) -> None:
        """Run until the stop is requested, or the component cannot be brought up at all."""
        try:
            if self._await_conditions():
                self._keep_running()
        except Exception as error:
            # A fault of our own in one thread would else leave the others running unwatched.
            _LOG.exception("the runner of %s failed", self.name)
            self._tell(ComponentState.FAILED, f"the supervisor failed: {error}")
        finally:
            self._finish()

    def _keep_running(self) -> None:
        while not self._stop_requested.is_set():
            try:
                ended = self._run_once()
            except (StackError, OSError) as error:
                # No process can be started without memory, files or space; that passes.
                ended = str(error)
            if self._stop_requested.is_set():
                return
            self._failures += 1
            _LOG.error("%s: %s", self.name, ended)
            hopeless = not self.prepared.is_set() or self._failures >= _FIRST_STARTS
            if not self.ready.is_set() and hopeless:
                self._tell(ComponentState.FAILED, ended)
                return
            self._back_off(ended)

    def _run_once(self) -> str:
        """Prepare, start and watch the process; returns why it ended."""
        self._component.stop()
        if self._plan.prepare is not None and not self.prepared.is_set():
            self._tell(ComponentState.PREPARING, self._plan.prepare_title)
        if not self.prepared.is_set() and not self._component.prepare():
            return "cut short"
        self.prepared.set()
        self._component.start()
        self._tell(ComponentState.STARTING, "")
        if not self._component.wait_ready():
            return "cut short"
        self._tell(ComponentState.READY, "", ready_since=time.time())
        _LOG.info("%s is ready", self.name)
        self.ready.set()
        return self._watch()

    def _watch(self) -> str:
        """Watch a ready process until it ends, or has been silent for too long."""
        began = last_answer = next_probe = time.monotonic()
        failed_probes = 0
        while not self._stop_requested.is_set():
            if (code := self._component.exit_code(_POLL_S)) is not None:
                return f"{self.name} ended unexpectedly: {self._cause(code)}"
            now = time.monotonic()
            if now - began > _SETTLED_S:
                self._failures = 0
            if now < next_probe:
                continue
            reason = self._component.unhealthy_reason()
            next_probe = time.monotonic() + _PROBE_EVERY_S
            self._component.trim_log()
            failed_probes = 0 if reason is None else failed_probes + 1
            last_answer = now if reason is None else last_answer
            if now - last_answer > _SILENCE_LIMIT_S:
                return f"{self.name} has not been healthy for {_SILENCE_LIMIT_S:.0f} s: {reason}"
            if failed_probes == 0 and self.status.state is ComponentState.UNHEALTHY:
                self._tell(ComponentState.READY, "", ready_since=self.status.ready_since)
            elif failed_probes == _FAILED_PROBES_TO_TELL:
                self._tell(ComponentState.UNHEALTHY, reason or "", ready_since=self.status.ready_since)
        return "stop requested"

    def _back_off(self, reason: str) -> None:
        # The first restart is immediate: a single crash should cost its users as little as may be.
        pause = _BACKOFF.pause_s(self._failures - 1)
        self.status = replace(self.status, restarts=self.status.restarts + 1)
        self._tell(ComponentState.BACKING_OFF, reason)
        self._stop_requested.wait(pause)

    def _await_conditions(self) -> bool:
        for what, condition in self._conditions:
            while not condition.wait(_POLL_S):
                if self._stop_requested.is_set():
                    return False
                if self.status.detail != f"for {what}":
                    self._tell(ComponentState.WAITING, f"for {what}")
        return True

    def _finish(self) -> None:
        failed = self.status.state is ComponentState.FAILED
        for dependent in self._dependents if self._stop_requested.is_set() else []:
            dependent.join()
        if not failed:
            self._tell(ComponentState.STOPPING, "")
        self._component.stop()
        self._tell(ComponentState.FAILED if failed else ComponentState.STOPPED, self.status.detail)

    def _tell(self, state: ComponentState, detail: str, ready_since: float | None = None) -> None:
        self.status = replace(
            self.status, state=state, detail=detail, process=self._component.identity, ready_since=ready_since
        )
        self._report(self.status)

    def _cause(self, exit_code: int) -> str:
        # Who was killed had no last words; the end of its log would only mislead.
        if exit_code < 0:
            return f"signal {-exit_code} (see {self._plan.log})"
        return f"exit status {exit_code}: {self._component.last_words()}"
