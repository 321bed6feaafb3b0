"""OpenAI's two clients, unmodified, to be used in the same way: the asynchronous one waits on a loop elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from inspect import isawaitable
from typing import Any, cast

import openai

_PART_MARKS = ("__call__", "__aiter__", "__aenter__", "with_raw_response")
"""What methods, streams, contexts and resources of the client have, and its answers have not."""


class Blocking:
    """The asynchronous client, or a part or a stream of it, to be used as the synchronous one is."""

    def __init__(self, part: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._part = part
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return self._blocking(getattr(self._part, name))

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._blocking(self._part(*args, **named))

    def __iter__(self) -> Iterator[Any]:
        items, end = aiter(self._part), object()
        while (item := self._blocking(anext(items, end))) is not end:
            yield item

    def __enter__(self) -> Any:
        return self._blocking(self._part.__aenter__())

    def __exit__(self, *error: object) -> None:
        self._blocking(self._part.__aexit__(*error))

    def _blocking(self, given: Any) -> Any:
        if isawaitable(given):
            given = asyncio.run_coroutine_threadsafe(_wait(given), self._loop).result()
        is_part = any(hasattr(given, mark) for mark in _PART_MARKS)
        return Blocking(given, self._loop) if is_part else given


@contextmanager
def open_clients(url: str, key: str) -> Iterator[dict[str, openai.OpenAI]]:
    """Both clients of a pod, by `sync` and `async`."""
    options: Any = {"base_url": f"{url}/v1", "api_key": key, "max_retries": 0}
    with (
        _running_loop() as loop,
        openai.OpenAI(**options) as client,
        Blocking(openai.AsyncOpenAI(**options), loop) as other,
    ):
        yield {"sync": client, "async": cast("openai.OpenAI", other)}


@contextmanager
def _running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(loop.run_forever)
        try:
            yield loop
        finally:
            loop.call_soon_threadsafe(loop.stop)
            running.result()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


async def _wait(awaited: Awaitable[Any]) -> Any:
    return await awaited
