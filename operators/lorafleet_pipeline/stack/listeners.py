"""Who listens on a port, told by the kernel: an answer proves nothing about whose server it is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lorafleet_pipeline.stack.process import group_members

_LISTEN = "0A"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def group_listens(group: int, port: int) -> bool:
    """Whether a process of a process group listens on a port."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    return any(wanted & _open_files(member.pid) for member in group_members(group))


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in _TABLES:
        for line in table.read_text().splitlines()[1:] if table.is_file() else []:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _open_files(pid: int) -> set[str]:
    targets = set()
    # The process, or a file of it, may be gone before it is looked at.
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                targets.add(os.readlink(entry.path))
    return targets
