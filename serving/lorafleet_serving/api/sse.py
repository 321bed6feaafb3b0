"""Server-sent events, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lorafleet_serving.api.errors import envelope
from lorafleet_serving.exceptions import ClientGone, ServingError

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

END_OF_STREAM = "[DONE]"
"""What a stream of OpenAI's dialect ends with."""
DONE = f"data: {END_OF_STREAM}\n\n"

# Made once: with options of its own, `json.dumps` makes an encoder for each event.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def event(body: Mapping[str, Any], encode: Callable[[Any], str] = _encode) -> str:
    """One event."""
    return f"data: {encode(body)}\n\n"


class EventStream(StreamingResponse):
    """Answers with events; an error on the way becomes the last one, since the status has gone out already.

    `on_end` is called however the stream ends, even when the client left before it began.
    """

    def __init__(
        self, events: AsyncIterator[str], headers: Mapping[str, str], on_end: Callable[[], None], *, lorax: bool
    ) -> None:
        extra = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_guarded(events, lorax), media_type="text/event-stream", headers={**headers, **extra})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work, which is cancelled when the client leaves.

    Raises:
        ClientGone: it has left.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the client has left before it was answered")
        return await task
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _guarded(events: AsyncIterator[str], lorax: bool) -> AsyncIterator[str]:
    try:
        async for item in events:
            yield item
    except ServingError as error:
        yield event(envelope(error, lorax=lorax))
    except Exception as error:
        _logger.exception("a stream failed")
        yield event(envelope(error, lorax=lorax))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
