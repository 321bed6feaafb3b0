"""The inside of a step's process: its lock, its identity, and how its failure reaches whoever follows it.

A folder belongs to one process at a time. The lock is a `flock` that the launcher takes and the process inherits,
so it is held without a gap from the decision to start until the process is gone, however it dies.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorafleet_pipeline.exceptions import PipelineError
from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.storage import disk_errors

logger = logging.getLogger(__name__)

LOCK_FD_OPTION = "--lock-fd"


@dataclass(frozen=True)
class StepFiles:
    """Files by which a step's process and its followers speak to each other."""

    folder: Path
    result_name: str = "result.json"

    @property
    def lock(self) -> Path:
        """Held by the process while it lives."""
        return self.folder / "process.lock"

    @property
    def process(self) -> Path:
        """Identity of the process."""
        return self.folder / "process.json"

    @property
    def progress(self) -> Path:
        """One JSON object a line."""
        return self.folder / "progress.jsonl"

    @property
    def result(self) -> Path:
        """Written last by a process that ended well."""
        return self.folder / self.result_name

    @property
    def failure(self) -> Path:
        """Class and message of the error that ended it."""
        return self.folder / "failure.json"

    @property
    def cancellation(self) -> Path:
        """Class and message of why somebody ended it."""
        return self.folder / "cancellation.json"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "process.log"


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Take a lock file, alone or beside others; None when someone holds it. Closing the descriptor gives it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


class ProgressLog:
    """Appends reports for followers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, report: Mapping[str, Any]) -> None:
        """Write one report as one line, in one call, so that no follower reads half of it."""
        with self._path.open("ab", buffering=0) as file:
            file.write(json.dumps(report).encode() + b"\n")


@contextmanager
def step_process(
    files: StepFiles, lock_fd: int | None, *, failure: type[PipelineError], stopped: type[PipelineError]
) -> Iterator[None]:
    """Be the one process of a folder. An error is recorded for followers and ends the process with status 1.

    Args:
        files: the step's files.
        lock_fd: descriptor of the lock as the launcher handed it over; None takes the lock here.
        failure: class under which an error that is none of ours is reported.
        stopped: class under which SIGTERM is reported.
    """
    descriptor = try_lock(files.lock) if lock_fd is None else lock_fd
    if descriptor is None:
        sys.exit(f"another process works in {files.folder}: wait for it, or cancel it")
    os.set_inheritable(descriptor, False)
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None, "a running process has an entry in /proc"
    write_json(files.process, asdict(identity))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # Each request to S3 and MLflow would be a line of its own.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: _stop(number, stopped))
    try:
        with disk_errors(files.folder):
            yield
    except PipelineError as error:
        logger.error("%s: %s", type(error).__name__, error)
        write_json(files.failure, {"error": type(error).__name__, "message": str(error)})
        sys.exit(1)
    except Exception as error:
        logger.exception("the process failed")
        message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        write_json(files.failure, {"error": failure.__name__, "message": f"{message} (log: {files.log})"})
        sys.exit(1)


def _stop(number: int, error: type[PipelineError]) -> None:
    raise error(f"the process was told to stop ({signal.Signals(number).name}): call the step again to go on")
