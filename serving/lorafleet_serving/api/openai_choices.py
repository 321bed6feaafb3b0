"""Answers of the OpenAI dialect, as entries of `choices`: whole, or chunk by chunk while they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorafleet_serving.api.openai_logprobs import ChatLogprobs, DecodeToken, TextLogprobs, prompt_logprobs
from lorafleet_serving.api.openai_tools import Call, CallFinder, ToolUse
from lorafleet_serving.engine.request import FinishReason, ScoredToken
from lorafleet_serving.generation import Piece
from lorafleet_serving.tokenizer import PodTokenizer

Json = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """What a request says of the form of its answers."""

    decode: DecodeToken
    with_logprobs: bool
    tools: ToolUse | None = None


class EchoedPrompt:
    """The prompt that stands before each of its answers."""

    def __init__(self, text: str, token_ids: tuple[int, ...], num_logprobs: int, tokenizer: PodTokenizer) -> None:
        self.text = text
        self.num_logprobs = num_logprobs
        """Those that were asked for, of alternatives too."""
        self.scores: Sequence[ScoredToken] = ()
        """They come with the first piece of the first answer."""
        self._token_ids = token_ids
        self._tokenizer = tokenizer

    @cached_property
    def logprobs(self) -> Json:
        """Its log-probabilities, written once for all answers."""
        return prompt_logprobs(self._tokenizer, self._token_ids, self.scores)


class TextChoice:
    """One answer of a completion. Made anew for each answer."""

    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, index: int, form: Form, echo: EchoedPrompt | None = None) -> None:
        self._index = index
        self._echo = echo
        offset = 0 if echo is None else len(echo.text)
        self._logprobs = TextLogprobs(form.decode, offset) if form.with_logprobs else None
        self._unwritten: list[Piece] = []

    @property
    def num_opening(self) -> int:
        """Log-probabilities of the prompt that come with the next piece."""
        return 0 if self._echo is None else self._echo.num_logprobs

    def whole(self, pieces: Sequence[Piece]) -> Json:
        """All of it at once."""
        assert pieces[-1].finish_reason is not None, "a whole answer has no end"
        return self._entry(pieces)

    def opening(self) -> Iterator[Json]:
        """What is sent before any piece."""
        yield from ()

    def feed(self, piece: Piece) -> Iterator[Json]:
        """What is sent for a piece."""
        if self._echo is not None and piece.output.prompt:
            self._echo.scores = piece.output.prompt
        self._unwritten.append(piece)
        if piece.text or piece.finish_reason is not None or self._echo is not None:
            pieces, self._unwritten = self._unwritten, []
            yield self._entry(pieces)

    def _entry(self, pieces: Sequence[Piece]) -> Json:
        """The next pieces; before the first of them the prompt, where it is echoed."""
        echo, self._echo = self._echo, None
        text = "".join(piece.text for piece in pieces)
        logprobs = None if self._logprobs is None else self._logprobs.write(pieces)
        if echo is not None:
            text = echo.text + text
            if logprobs is not None:
                logprobs = {name: [*echo.logprobs[name], *values] for name, values in logprobs.items()}
        reason = finish_reason(pieces[-1].finish_reason)
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}


class ChatChoice:
    """One answer of a chat completion. Made anew for each answer."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    num_opening = 0

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
