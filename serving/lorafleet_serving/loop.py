"""The way from threads into the front's event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], argument: object) -> None:
    """Have a callback run on the loop; without effect once the loop has closed, for then the front has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, argument)
