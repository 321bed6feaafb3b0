"""How much memory there is for this process."""

from __future__ import annotations

import contextlib
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)
"""Files of a container's limit, use and what it uses, with what the entries of the last begin with, in control groups
of version 2 and 1, as they are seen from inside."""


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes that can be had without driving anybody out of memory, on the machine and within the container's limit."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, used, stat, prefix in _LIMITS:
        # No such file, or `max`: no limit.
        with contextlib.suppress(OSError, ValueError):
            left = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
            available = min(available, left + _file_bytes(cgroup / stat, prefix))
    return max(available, 0)


def _file_bytes(stat: Path, prefix: str) -> int:
    """Cached pages of files, which count as used and are given up for the asking."""
    if not stat.is_file():
        return 0
    entries = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(entries.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
