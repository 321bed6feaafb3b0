"""Awaiting a condition of another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_for(look: Callable[[], Found | None], what: str, limit_s: float = 60.0) -> Found:
    """Look again and again until there is something to see, and return it."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {limit_s} s"
        time.sleep(0.05)
    return found
