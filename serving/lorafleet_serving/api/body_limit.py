"""A limit on request bodies: no route sees a body that is longer, and none is kept in memory."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorafleet_serving.api.errors import error_response
from lorafleet_serving.exceptions import BodyTooLong


class BodyLimit:
    """Reads each body before the application does, up to the limit; `on_refusal` is told of those that are longer."""

    def __init__(self, app: ASGIApp, max_bytes: int, on_refusal: Callable[[str], None]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body is None:
            error = BodyTooLong(f"the body is longer than {self._max_bytes} bytes, the pod's max_body_bytes")
            response = error_response(scope["path"], error)
            self._on_refusal(response.reason)
            await response(scope, receive, send)
            return
        start: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return start.pop() if start else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if it is too long."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self._max_bytes:
            return None
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                return None
            if not message.get("more_body", False):  # Also where the client has left, which the application sees next.
                return bytes(body)
