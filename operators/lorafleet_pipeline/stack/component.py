"""One component of the stack: a process group with a log and a health check.

It knows how to start, probe and stop a process, and nothing of what that process serves.
"""

from __future__ import annotations

import http.client
import os
import select
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.stack.listeners import group_listens
from lorafleet_pipeline.stack.process import group_members, stop_processes

Probe = Callable[[float], str | None]
"""Given when the process was started (unix seconds), returns None when it is healthy, else the reason why not."""

_PROBE_TIMEOUT_S = 10.0
_POLL_S = 0.2
_LOG_LIMIT_BYTES = 20 << 20
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class ComponentPlan:
    """What a component's process is, what it waits for, and how its readiness is seen.

    `requires` names components that must be ready first, `after_prepared` those whose preparation must be done.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    log: Path
    probe: Probe
    url: str | None = None
    requires: frozenset[str] = frozenset()
    after_prepared: frozenset[str] = frozenset()
    prepare: tuple[str, ...] | None = None
    prepare_title: str = ""
    before_start: Callable[[], None] | None = None
    on_prepared: Callable[[], None] | None = None
    on_ready: Callable[[], None] | None = None
    on_stopped: Callable[[], None] | None = None
    start_limit_s: float = 240.0
    stop_limit_s: float = 15.0


class Component:
    """A component's process, started and stopped as a session of its own.

    Waiting ends early, with False, once `stop_requested` is set.
    """

    def __init__(self, plan: ComponentPlan, stop_requested: threading.Event | None = None) -> None:
        self.plan = plan
        self.identity: ProcessIdentity | None = None
        self._stop_requested = stop_requested or threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    def prepare(self) -> bool:
        """Run what must be done before the process can start; False when it was cut short.

        Raises:
            StackError: it failed.
        """
        if self.plan.prepare is not None:
            self._spawn(self.plan.prepare)
            while (code := self.exit_code(_POLL_S)) is None:
                if self._stop_requested.is_set():
                    return False
            if code != 0:
                raise StackError(f"{self.plan.name} could not be prepared (exit status {code}): {self.last_words()}")
        if self.plan.on_prepared is not None:
            self.plan.on_prepared()
        return True

    def start(self) -> None:
        """Start the process; it leads a session of its own."""
        self._spawn(self.plan.command)

    def unhealthy_reason(self) -> str | None:
        """None when the component, and not another server on its port, answers the health check."""
        reason = self.plan.probe(self._started_at)
        if reason is not None or self.plan.url is None or self._process is None:
            return reason
        port = urlsplit(self.plan.url).port
        if port is not None and not group_listens(self._process.pid, port):
            return f"port {port} is answered by another process"
        return None

    def exit_code(self, wait_s: float = 0.0) -> int | None:
        """The exit status once the process has ended, else None."""
        assert self._process is not None, "the component was not started"
        if wait_s > 0 and self._process.poll() is None:
            # The process's own file wakes the one who waits; `Popen.wait` would look again and again.
            end = os.pidfd_open(self._process.pid)
            try:
                select.select([end], [], [], wait_s)
            finally:
                os.close(end)
        return self._process.poll()

    def wait_ready(self) -> bool:
        """Wait until the component answers; False when the wait was cut short.

        Raises:
            StackError: it ended, or did not answer within its limit.
        """
        deadline = time.monotonic() + self.plan.start_limit_s
        while (reason := self.unhealthy_reason()) is not None:
            if self._stop_requested.is_set():
                return False
            if (code := self.exit_code(_POLL_S)) is not None:
                raise StackError(f"{self.plan.name} ended at start (exit status {code}): {self.last_words()}")
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.plan.name} did not become ready within {self.plan.start_limit_s:.0f} s ({reason}): "
                    f"see {self.plan.log}"
                )
        if self.plan.on_ready is not None:
            self.plan.on_ready()
        return True

    def stop(self) -> None:
        """Stop the process and everything left of its group."""
        if self._process is None:
            return
        # A dead leader's children keep its group's number from being given to anyone else.
        stop_processes(group_members(self._process.pid), self.plan.stop_limit_s)
        self._process.wait()
        self._process, self.identity = None, None
        if self.plan.on_stopped is not None:
            self.plan.on_stopped()

    def trim_log(self) -> None:
        """Put a log that has grown large aside. The process holds it open, so it is emptied and not moved."""
        log = self.plan.log
        if not log.is_file() or log.stat().st_size <= _LOG_LIMIT_BYTES:
            return
        aside = log.with_name(f"{log.name}.1")
        try:
            shutil.copyfile(log, aside)
        except OSError:
            # On a full disk, room is worth more than old lines, and the component runs on.
            aside.unlink(missing_ok=True)
        os.truncate(log, 0)

    def last_words(self) -> str:
        """The last line of the log, for an error message."""
        lines = [line.strip() for line in self.plan.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'it wrote nothing'} (see {self.plan.log})"

    def _spawn(self, command: tuple[str, ...]) -> None:
        self.plan.log.parent.mkdir(parents=True, exist_ok=True)
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        if self.plan.before_start is not None:
            self.plan.before_start()
        self.trim_log()
        with self.plan.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.plan.folder,
                env=dict(self.plan.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started_at = time.time()
        self.identity = ProcessIdentity.of(self._process.pid)


def http_probe(url: str) -> Probe:
    """A probe that is content with any answer below 400."""

    def probe(since: float) -> str | None:
        try:
            with _DIRECT.open(url, timeout=_PROBE_TIMEOUT_S):
                return None
        except urllib.error.HTTPError as error:
            with error:
                return f"{url} answers {error.code}"
        except (OSError, http.client.HTTPException) as error:
            return f"{url} does not answer: {error}"

    return probe
