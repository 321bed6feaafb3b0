"""Whole answers of the OpenAI dialect, as entries of `choices`."""

from __future__ import annotations

from typing import Any

from lorafleet_serving.api.answer import WholeAnswer
from lorafleet_serving.api.openai_chunks import finish_reason
from lorafleet_serving.api.openai_logprobs import ChatLogprobs, Decode, LogprobWriter, TextLogprobs

Json = dict[str, Any]


class Choices:
    """Writes answers. Subclasses say where the text stands."""

    prefix = ""
    kind = ""
    logprobs: type[LogprobWriter]

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def write(self, index: int, answer: WholeAnswer) -> Json:
        """One answer."""
        asked = any(piece.output.logprob is not None for piece in answer.pieces)
        return {
            "index": index,
            **self.content(answer.text),
            "logprobs": self.logprobs(self._decode).write(answer.pieces) if asked else None,
            "finish_reason": finish_reason(answer.finish_reason),
        }

    def content(self, text: str) -> Json:
        """The text in its place."""
        raise NotImplementedError


class TextChoices(Choices):
    """Of a completion."""

    prefix = "cmpl"
    kind = "text_completion"
    logprobs = TextLogprobs

    def content(self, text: str) -> Json:
        """As it is."""
        return {"text": text}


class ChatChoices(Choices):
    """Of a chat completion."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    logprobs = ChatLogprobs

    def content(self, text: str) -> Json:
        """In a message."""
        return {"message": {"role": "assistant", "content": text}}
