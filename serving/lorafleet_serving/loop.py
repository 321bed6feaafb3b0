"""The front's event loop: the way into it from threads, out of it into one, and work side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

_INLINE_CHARACTERS = 4000
"""Shorter texts are tokenized on the event loop: a thread would cost more than the work."""

Result = TypeVar("Result")


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], argument: object) -> None:
    """Have a callback run on the loop; without effect once the loop has closed, for then the front has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, argument)


async def off_loop(text: str, encode: Callable[..., Result], **options: bool) -> Result:
    """Tokenize a text, in a thread where it would hold up other callers."""
    if len(text) <= _INLINE_CHARACTERS:
        return encode(text, **options)
    return await asyncio.to_thread(encode, text, **options)


async def together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Results of several pieces of work that run side by side; the first error ends all."""
    running = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for task in running:  # After an error the others would wait for tokens that never come.
            task.cancel()
