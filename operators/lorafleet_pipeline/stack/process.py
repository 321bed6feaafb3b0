"""Processes of the stack: those of a group or with a mark in their environment, found and stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lorafleet_pipeline.process_identity import ProcessEntry, ProcessIdentity

_POLL_S = 0.05


def processes_with(variable: str, value: str) -> list[ProcessIdentity]:
    """Every process of this user whose environment holds `variable=value`.

    Processes that a component started in a session of their own (a training) are found only so.
    """
    wanted = f"{variable}={value}".encode()
    pids = [pid for pid in _pids() if wanted in _environment(pid)]
    return [process for pid in pids if (process := ProcessIdentity.of(pid)) is not None]


def group_members(group: int) -> list[ProcessIdentity]:
    """The live processes of a process group."""
    entries = [entry for pid in _pids() if (entry := ProcessEntry.of(pid)) is not None]
    return [entry.identity for entry in entries if entry.group == group]


def stop_processes(processes: list[ProcessIdentity], limit_s: float) -> list[ProcessIdentity]:
    """Ask processes to end, kill those that did not within the limit, and return the killed ones."""
    _signal(processes, signal.SIGTERM)
    late = _await_end(processes, limit_s)
    _signal(late, signal.SIGKILL)
    _await_end(late, limit_s)
    return late


def _signal(processes: list[ProcessIdentity], number: signal.Signals) -> None:
    for process in processes:
        if process.is_alive:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _await_end(processes: list[ProcessIdentity], limit_s: float) -> list[ProcessIdentity]:
    deadline = time.monotonic() + limit_s
    while (alive := [process for process in processes if process.is_alive]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return alive


def _environment(pid: int) -> list[bytes]:
    """Empty for a process that is gone, or another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())
