"""Streamed answers of the OpenAI dialect: several at a time, each under its index, as their pieces come."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from lorafleet_serving.api.answer import Answer
from lorafleet_serving.api.long_json import long_json, written
from lorafleet_serving.api.openai_choices import ChoiceWriter
from lorafleet_serving.api.openai_usage import usage
from lorafleet_serving.api.sse import DONE, event
from lorafleet_serving.generation import Piece

Json = dict[str, Any]


class Chunks:
    """Writes one stream."""

    def __init__(
        self, answers: Sequence[Answer], writers: Sequence[ChoiceWriter], *, answers_per_prompt: int, with_usage: bool
    ) -> None:
        self._answers = answers
        self._writers = writers
        self._answers_per_prompt = answers_per_prompt
        self._with_usage = with_usage
        first = writers[0]
        self._head = head(first.prefix, first.chunk_kind, answers[0].model)

    async def events(self) -> AsyncIterator[str]:
        """All events of the stream."""
        for writer in self._writers:
            for choice in writer.opening():
                yield self._chunk(choice)
        # The first answer to a prompt brings what was read of it for all.
        waits = any(writer.num_opening for writer in self._writers)
        async for index, piece in _interleaved(self._answers, self._answers_per_prompt if waits else 1):
            num_opening = self._writers[index].num_opening
            for chunk in await written(num_opening, partial(self._fed, index, piece, is_long=num_opening > 0)):
                yield chunk
        if self._with_usage:
            yield event({**self._head, "choices": [], "usage": usage(self._answers, self._answers_per_prompt)})
        yield DONE

    def _fed(self, index: int, piece: Piece, *, is_long: bool) -> list[str]:
        """Chunks for a piece."""
        return [self._chunk(choice, is_long=is_long) for choice in self._writers[index].feed(piece)]

    def _chunk(self, choice: Json, *, is_long: bool = False) -> str:
        chunk = {**self._head, "choices": [choice]}
        if self._with_usage:
            chunk["usage"] = None  # Every chunk before the last one carries the field too.
        return event(chunk, long_json) if is_long else event(chunk)


def head(prefix: str, kind: str, model: str) -> Json:
    """What every answer and chunk begins with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


async def _interleaved(answers: Sequence[Answer], num_together: int) -> AsyncIterator[tuple[int, Piece]]:
    """Pieces of all answers as they come, of `num_together` side by side the first one's first; an error ends all."""
    if len(answers) == 1:
        async for only in answers[0].pieces():
            yield 0, only
        return
    arrived: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()
    begun = [asyncio.Event() for _ in answers[::num_together]]

    async def forward(index: int, answer: Answer) -> None:
        try:
            if index % num_together:
                await begun[index // num_together].wait()
            async for piece in answer.pieces():
                arrived.put_nowait((index, piece))
                begun[index // num_together].set()
            answer.close()  # At once: after a stop string the engine would generate on while the others go on.
        finally:
            arrived.put_nowait((index, None))

    tasks = [asyncio.ensure_future(forward(index, answer)) for index, answer in enumerate(answers)]
    num_left = len(tasks)
    try:
        while num_left:
            index, piece = await arrived.get()
            if piece is not None:
                yield index, piece
            else:
                await tasks[index]
                num_left -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
