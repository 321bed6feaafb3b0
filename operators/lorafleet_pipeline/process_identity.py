"""What tells one process from all others of the machine, earlier and later ones too.

A pid alone does not: the kernel hands it out again. The start time and the boot settle it, so that what a crash left
behind never costs a stranger its process.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    started_ticks: int
    """Clock ticks after boot."""
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Identity of a running process; None for one that does not exist, or is only waiting to be reaped."""
        entry = ProcessEntry.of(pid)
        return None if entry is None else entry.identity

    @classmethod
    def read(cls, path: Path) -> ProcessIdentity | None:
        """The identity that a process left in a file; None if there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return ProcessIdentity.of(self.pid) == self


@dataclass(frozen=True)
class ProcessEntry:
    """What the kernel says of a process that runs."""

    identity: ProcessIdentity
    group: int

    @classmethod
    def of(cls, pid: int) -> ProcessEntry | None:
        """None for a process that does not exist, or is only waiting to be reaped."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None  # It is gone, or another user's on a machine that hides those.
        # The command's name stands in parentheses and may itself hold spaces and parentheses.
        fields = text.rpartition(")")[2].split()
        state, group, started_ticks = fields[0], int(fields[2]), int(fields[19])
        return None if state in "ZX" else cls(ProcessIdentity(pid, started_ticks, _boot_id()), group)


@cache
def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""  # In a sandbox that hides it the start time has to do.
