"""Long answers as JSON: made by a thread, and in parts, so that the event loop goes on beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from lorafleet_serving.loop import Result

_INLINE_ITEMS = 1000
"""Log-probabilities, tokens or numbers. Fewer are written on the event loop: a thread would cost more than the work."""
_PART = 64
"""Items of a list that are written at once: meanwhile no other thread runs, the event loop's neither."""

# As Starlette writes an answer, so that a long one is written like a short one.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class LongJSONResponse(JSONResponse):
    """An answer that a thread makes."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return long_json(content).encode()


def long_json(value: Any) -> str:
    """JSON of a value, whose lists may be long."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_encode(name)}:{long_json(item)}" for name, item in value.items()) + "}"
    if not isinstance(value, list):
        return _encode(value)
    if value and _nests(value[0]):
        return "[" + ",".join(long_json(item) if _is_long(item) else _encode(item) for item in value) + "]"
    parts = (value[start : start + _PART] for start in range(0, len(value), _PART))
    return "[" + ",".join(_encode(part)[1:-1] for part in parts) + "]"


async def written(num_items: int, write: Callable[[], Result]) -> Result:
    """What `write` makes of so many items; by a thread where they are many."""
    return write() if num_items <= _INLINE_ITEMS else await asyncio.to_thread(write)


async def json_response(num_items: int, write: Callable[[], Any], headers: Mapping[str, str]) -> Response:
    """The answer that `write` makes of so many items."""
    kind = JSONResponse if num_items <= _INLINE_ITEMS else LongJSONResponse
    return await written(num_items, lambda: kind(write(), headers=headers))


def _nests(item: Any) -> bool:
    return isinstance(item, dict) and any(isinstance(value, (dict, list)) for value in item.values())


def _is_long(value: Any) -> bool:
    """Whether it holds a list of more than a part. Items of a list are alike: the first one speaks for all."""
    if isinstance(value, dict):
        return any(map(_is_long, value.values()))
    return isinstance(value, list) and (len(value) > _PART or any(map(_is_long, value[:1])))
