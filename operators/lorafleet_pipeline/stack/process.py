"""Processes of the stack, told apart by pid and start time, and stopped by process group.

A pid alone is not an identity: the kernel hands it out again. The start time and the boot settle it,
so that a home left behind by a crash never costs a stranger its process.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessMark:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    started_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """The mark of a running process, or None when there is none."""
        fields = _stat_fields(pid)
        return None if fields is None else cls(pid, fields.started_ticks, _boot_id())

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return ProcessMark.of(self.pid) == self


@dataclass(frozen=True)
class _StatFields:
    group: int
    started_ticks: int


def processes_with(variable: str, value: str) -> list[ProcessMark]:
    """Every process of this user whose environment holds `variable=value`.

    Processes that a component started in a session of their own (a training) are found only so.
    """
    wanted = f"{variable}={value}".encode()
    found = []
    for pid in _pids():
        with suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and (mark := ProcessMark.of(pid)):
                found.append(mark)
    return found


def group_members(group: int) -> list[ProcessMark]:
    """The live processes of a process group."""
    members = []
    for pid in _pids():
        fields = _stat_fields(pid)
        if fields is not None and fields.group == group:
            members.append(ProcessMark(pid, fields.started_ticks, _boot_id()))
    return members


def stop_processes(marks: list[ProcessMark], limit_s: float) -> list[ProcessMark]:
    """Ask processes to end, kill those that did not within the limit, and return the killed ones."""
    _signal(marks, signal.SIGTERM)
    late = _await_end(marks, limit_s)
    _signal(late, signal.SIGKILL)
    _await_end(late, limit_s)
    return late


def _signal(marks: list[ProcessMark], number: signal.Signals) -> None:
    for mark in marks:
        if mark.is_alive:
            with suppress(ProcessLookupError):
                os.kill(mark.pid, number)


def _await_end(marks: list[ProcessMark], limit_s: float) -> list[ProcessMark]:
    deadline = time.monotonic() + limit_s
    while (alive := [mark for mark in marks if mark.is_alive]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return alive


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _stat_fields(pid: int) -> _StatFields | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        return None
    # The command name stands in parentheses and may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    state, group, started_ticks = fields[0], int(fields[2]), int(fields[19])
    return None if state in "ZX" else _StatFields(group, started_ticks)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
