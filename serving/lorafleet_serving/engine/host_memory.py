"""How much memory there is for this process."""

from __future__ import annotations

import contextlib
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files of a container's limit and use, in control groups of version 2 and 1, as they are seen from inside."""


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes that can be had without driving anybody out of memory, on the machine and within the container's limit."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, used in _LIMITS:
        # No such file, or `max`: no limit.
        with contextlib.suppress(OSError, ValueError):
            available = min(available, int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
    return max(available, 0)
