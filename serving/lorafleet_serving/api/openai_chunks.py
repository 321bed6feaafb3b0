"""Streamed answers of the OpenAI dialect, chunk by chunk."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from lorafleet_serving.api.answer import Answer
from lorafleet_serving.api.openai_logprobs import ChatLogprobs, LogprobWriter, TextLogprobs
from lorafleet_serving.api.sse import DONE, event
from lorafleet_serving.engine.request import FinishReason
from lorafleet_serving.generation import Piece

Json = dict[str, Any]


class Chunks:
    """Writes one streamed answer. Subclasses say what a choice looks like."""

    prefix = ""
    kind = ""
    logprobs: type[LogprobWriter]

    def __init__(self, answer: Answer, *, with_usage: bool, logprobs: LogprobWriter | None) -> None:
        self._answer = answer
        self._with_usage = with_usage
        self._logprobs = logprobs
        self._head = head(self.prefix, self.kind, answer.model)

    async def events(self) -> AsyncIterator[str]:
        """All events of the stream."""
        first = self.opening()
        if first is not None:
            yield self._chunk(first)
        unwritten: list[Piece] = []
        async for piece in self._answer.pieces():
            unwritten.append(piece)
            if piece.text or piece.finish_reason is not None:
                reason = None if piece.finish_reason is None else finish_reason(piece.finish_reason)
                yield self._chunk(self.choice(piece.text, reason), unwritten)
                unwritten = []
        if self._with_usage:
            counted = usage(self._answer.num_prompt, self._answer.num_tokens)
            yield event({**self._head, "choices": [], "usage": counted})
        yield DONE

    def opening(self) -> Json | None:
        """A choice sent before any text."""
        return None

    def choice(self, text: str, reason: str | None) -> Json:
        """A choice that carries text, the end, or both."""
        raise NotImplementedError

    def _chunk(self, choice: Json, pieces: Sequence[Piece] = ()) -> str:
        logprobs = self._logprobs.write(pieces) if self._logprobs is not None and pieces else None
        chunk = {**self._head, "choices": [{"index": 0, **choice, "logprobs": logprobs}]}
        # With usage asked for, every chunk before the last one carries the field too.
        return event({**chunk, "usage": None} if self._with_usage else chunk)


class TextChunks(Chunks):
    """Of a completion."""

    prefix = "cmpl"
    kind = "text_completion"
    logprobs = TextLogprobs

    def choice(self, text: str, reason: str | None) -> Json:
        """A piece of text."""
        return {"text": text, "finish_reason": reason}


class ChatChunks(Chunks):
    """Of a chat completion."""

    prefix = "chatcmpl"
    kind = "chat.completion.chunk"
    logprobs = ChatLogprobs

    def opening(self) -> Json | None:
        """Who speaks."""
        return {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def choice(self, text: str, reason: str | None) -> Json:
        """A piece of the message."""
        return {"delta": {"content": text} if text else {}, "finish_reason": reason}


def head(prefix: str, kind: str, model: str) -> Json:
    """What every answer and chunk begins with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(num_prompt: int, num_generated: int) -> Json:
    """Counts of tokens."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
    }


def finish_reason(reason: FinishReason) -> str:
    """The dialect's word for an end."""
    return "length" if reason is FinishReason.LENGTH else "stop"
