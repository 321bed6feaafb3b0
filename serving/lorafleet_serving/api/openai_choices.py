"""Answers of the OpenAI dialect, as entries of `choices`: whole, or chunk by chunk while they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafleet_serving.api.openai_logprobs import ChatLogprobs, Decode, TextLogprobs
from lorafleet_serving.api.openai_tools import Call, CallFinder, ToolUse
from lorafleet_serving.engine.request import FinishReason
from lorafleet_serving.generation import Piece

Json = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """What a request says of the form of its answers."""

    decode: Decode
    with_logprobs: bool
    tools: ToolUse | None = None


@dataclass(frozen=True)
class EchoedPrompt:
    """The prompt that stands before an answer."""

    text: str
    token_ids: tuple[int, ...]


class TextChoice:
    """One answer of a completion. Made anew for each answer."""

    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, index: int, form: Form, echo: EchoedPrompt | None = None) -> None:
        self._index = index
        self._echo = echo
        self._logprobs = TextLogprobs(form.decode) if form.with_logprobs else None
        self._unwritten: list[Piece] = []

    def whole(self, pieces: Sequence[Piece]) -> Json:
        """All of it at once."""
        text = "".join(piece.text for piece in pieces)
        echoed, logprobs = self._echoed(pieces[0]), self._written(pieces)
        reason = pieces[-1].finish_reason
        assert reason is not None, "a whole answer has no end"
        return self._entry((self._echo.text if self._echo else "") + text, _joined(echoed, logprobs), reason)

    def opening(self) -> Iterator[Json]:
        """What is sent before any piece."""
        yield from ()

    def feed(self, piece: Piece) -> Iterator[Json]:
        """What is sent for a piece."""
        self._unwritten.append(piece)
        echo, self._echo = self._echo, None
        if not piece.text and piece.finish_reason is None and echo is None:
            return
        echoed = None if echo is None else self._echoed(piece, echo)
        logprobs = _joined(echoed, self._written(self._unwritten))
        self._unwritten = []
        yield self._entry((echo.text if echo else "") + piece.text, logprobs, piece.finish_reason)

    def _echoed(self, first: Piece, echo: EchoedPrompt | None = None) -> Json | None:
        echo = echo or self._echo
        if echo is None or self._logprobs is None:
            return None
        return self._logprobs.write_prompt(echo.token_ids, first.output.prompt)

    def _written(self, pieces: Sequence[Piece]) -> Json | None:
        return None if self._logprobs is None else self._logprobs.write(pieces)

    def _entry(self, text: str, logprobs: Json | None, reason: FinishReason | None) -> Json:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason(reason)}


class ChatChoice:
    """One answer of a chat completion. Made anew for each answer."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, index: int, form: Form, echo: EchoedPrompt | None = None) -> None:
        assert echo is None, "a conversation is not echoed"
        self._index = index
        self._logprobs = ChatLogprobs(form.decode) if form.with_logprobs else None
        self._finder = None if form.tools is None else CallFinder(form.tools)
        self._num_calls = 0
        self._unwritten: list[Piece] = []

    def whole(self, pieces: Sequence[Piece]) -> Json:
        """All of it at once."""
        parts = [part for piece in pieces for part in self._parts(piece)]
        text = "".join(part for part in parts if isinstance(part, str))
        calls = [part.to_json() for part in parts if isinstance(part, Call)]
        message: Json = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        logprobs = None if self._logprobs is None else self._logprobs.write(pieces)
        reason = finish_reason(pieces[-1].finish_reason, called=bool(calls))
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def opening(self) -> Iterator[Json]:
        """Who speaks."""
        yield self._entry({"role": "assistant", "content": ""}, None)

    def feed(self, piece: Piece) -> Iterator[Json]:
        """What is sent for a piece: text, calls, each as a whole, and at last the reason of the end."""
        self._unwritten.append(piece)
        for part in self._parts(piece):
            yield self._entry(self._delta(part), None)
        if piece.finish_reason is not None:
            yield self._entry({}, finish_reason(piece.finish_reason, called=self._num_calls > 0))

    def _parts(self, piece: Piece) -> Iterator[str | Call]:
        if self._finder is not None:
            yield from self._finder.add(piece.text)
            if piece.finish_reason is not None:
                yield from self._finder.flush()
        elif piece.text:
            yield piece.text

    def _delta(self, part: str | Call) -> Json:
        if isinstance(part, str):
            return {"content": part}
        call = {"index": self._num_calls, **part.to_json()}
        self._num_calls += 1
        return {"tool_calls": [call]}

    def _entry(self, delta: Mapping[str, Any], reason: str | None) -> Json:
        """With the log-probabilities of everything since the entry before."""
        logprobs = self._logprobs.write(self._unwritten) if self._logprobs is not None and self._unwritten else None
        self._unwritten = []
        return {"index": self._index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}


ChoiceWriter = TextChoice | ChatChoice


def finish_reason(reason: FinishReason | None, *, called: bool = False) -> str | None:
    """The dialect's word for an end."""
    if reason is None:
        return None
    if reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if called else "stop"


def _joined(first: Json | None, second: Json | None) -> Json | None:
    if first is None or second is None:
        return second
    return {name: [*first[name], *second[name]] for name in second}
