"""A step in a process of its own: started once, found again, followed, cancelled.

The process outlives whoever started it. Any number of followers, in any process, may watch it, and all of them see
the same result or the same error.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorafleet_contract.openmp import BRIEF_WAITS
from lorafleet_pipeline import exceptions
from lorafleet_pipeline.exceptions import PipelineError
from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.training.worker import (
    LOCK_FD_OPTION,
    StepFiles,
    try_lock,
    write_json,
)

_POLL_S = 0.1
_START_S = 30.0
_GRACE_S = 15.0

ProgressCallback = Callable[[Mapping[str, Any]], None]


class StepProcess:
    """The process that works in one folder, if there is one.

    Args:
        files: the step's files.
        module: what to run, as `python -m MODULE ARGUMENTS`.
        arguments: its arguments.
        lost: error for a process that ended and left neither result nor error.
    """

    def __init__(self, files: StepFiles, module: str, arguments: Sequence[str], lost: type[PipelineError]) -> None:
        self._files = files
        self._command = [sys.executable, "-m", module, *arguments]
        self._lost = lost
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a process works in the folder now."""
        if self._child is not None:
            self._child.poll()  # Reaps it if it has ended.
        # Shared, so that two who look at once do not take each other for the process.
        descriptor = try_lock(self._files.lock, shared=True)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    @property
    def pid(self) -> int | None:
        """Id of the process that works in the folder now."""
        known = ProcessIdentity.read(self._files.process)
        return known.pid if known is not None and known.is_alive else None

    def start(self, environ: Mapping[str, str], prepare: Callable[[], None]) -> bool:
        """Start the process; False when one runs already, to be followed instead.

        Args:
            environ: variables that the process gets besides this one's.
            prepare: puts the folder in order; called while no process works in it and none can start.
        """
        descriptor = self._lock()
        if descriptor is None:
            return False
        try:
            prepare()
            self._files.failure.unlink(missing_ok=True)
            self._files.cancellation.unlink(missing_ok=True)
            self._files.process.unlink(missing_ok=True)
            with self._files.log.open("ab") as log:
                self._child = subprocess.Popen(
                    [*self._command, LOCK_FD_OPTION, str(descriptor)],
                    env={**BRIEF_WAITS, **os.environ, **environ},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(descriptor,),
                )
        finally:
            os.close(descriptor)
        self._await_identity(self._child)
        return True

    def follow(self, on_progress: ProgressCallback | None) -> None:
        """Wait for the end, passing on reports. Of what was reported before, only the latest is passed on.

        Raises:
            PipelineError: the error that ended the process, with its class and message; or, where it left none,
                the class that this step has for that.
        """
        reports = _Reports(self._files.progress)
        fresh = reports.read()[-1:]
        while True:
            running = self.is_running
            # Read after the look, or the last lines of a process that ends in between would be missed.
            fresh += reports.read()
            if on_progress is not None:
                for report in fresh:
                    on_progress(report)
            fresh = []
            if not running:
                break
            time.sleep(_POLL_S)
        status = self._child.wait() if self._child is not None else None
        if not self._files.result.is_file():
            raise self._failure(status)

    def last_report(self) -> dict[str, Any] | None:
        """The latest report, of this process or of one before it."""
        found = _Reports(self._files.progress).read()
        return found[-1] if found else None

    def clear(self, kept: Sequence[Path] = ()) -> None:
        """Delete what earlier processes left, but for the lock, the log and `kept`. None may be running."""
        for path in self._files.folder.iterdir():
            if path in (self._files.lock, self._files.log, *kept):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def cancel(self, reason: PipelineError) -> bool:
        """End the process and wait until it is gone; followers see the reason. False when none runs."""
        if not self.is_running:
            return False
        # Before the process ends: a follower may look at once, and finds what the process itself says of its end.
        write_json(self._files.cancellation, {"error": type(reason).__name__, "message": str(reason)})
        for number, patience in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
            self._signal(number)
            if self._gone_within(patience):
                break
        else:
            self._files.cancellation.unlink(missing_ok=True)
            raise self._lost(f"the process in {self._files.folder} cannot be ended: look at its state with ps")
        return True

    def _lock(self) -> int | None:
        """The folder's lock; None when a process holds it, not just someone looking whether one does."""
        for _ in range(20):
            descriptor = try_lock(self._files.lock)
            if descriptor is not None:
                return descriptor
            known = ProcessIdentity.read(self._files.process)
            if known is not None and known.is_alive:
                return None
            time.sleep(_POLL_S)
        return None

    def _await_identity(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_S
        while child.poll() is None and time.monotonic() < deadline:
            known = ProcessIdentity.read(self._files.process)
            if known is not None and known.pid == child.pid:
                return
            time.sleep(0.01)

    def _signal(self, number: signal.Signals) -> None:
        known = ProcessIdentity.read(self._files.process)
        if known is not None and known.is_alive:
            with suppress(ProcessLookupError):  # It has ended just now.
                os.killpg(known.pid, number)

    def _gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.is_running:
                return True
            time.sleep(0.02)
        return False

    def _failure(self, status: int | None) -> PipelineError:
        for told in (self._files.cancellation, self._files.failure):
            if told.is_file():
                found = json.loads(told.read_text())
                kind = getattr(exceptions, found["error"], self._lost)
                error: PipelineError = kind(found["message"])
                return error
        return self._lost(
            f"the process in {self._files.folder} ended without a result ({_ending(status)}): look at "
            f"{self._files.log}; a retry goes on from the last checkpoint"
        )


class _Reports:
    """Reads whole lines of a growing file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [report for report in map(_parsed, whole.splitlines()) if report is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A report; None for a line that a full disk or a kill cut short."""
    try:
        report: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return report


def _ending(status: int | None) -> str:
    if status is None:
        return "killed, by a signal that only its parent was told"
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}, often for lack of memory" if name == "SIGKILL" else name
