"""How much memory this process may use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_LIMIT_FILES = ("memory.max", "memory/memory.limit_in_bytes")
"""Of the container's control group, version 2 and 1."""


def memory_limit(cgroup: Path = _CGROUP) -> int:
    """Bytes of the machine's memory, or of the container's limit where that is lower."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _LIMIT_FILES:
        # No such file, or `max`: no limit.
        with contextlib.suppress(OSError, ValueError):
            limit = min(limit, int((cgroup / name).read_text()))
    return limit
