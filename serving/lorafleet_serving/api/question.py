"""What a caller asks, in either dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafleet_serving.adapters.merged import MergedAdapter
from lorafleet_serving.api.schemas import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from lorafleet_serving.caller import Caller
from lorafleet_serving.chat_template import ChatMessage, Tool
from lorafleet_serving.engine.request import Pooling, SamplingParams
from lorafleet_serving.exceptions import InvalidRequest


@dataclass(frozen=True)
class Question:
    """What a caller asks. Exactly one of `text`, `token_ids`, `messages` and `variables` is set."""

    model: str
    caller: Caller
    sampling: SamplingParams
    """Its `max_new_tokens` counts only where `max_tokens` is None and nothing else says more."""
    max_tokens: int | None
    max_tokens_field: str
    """Name of that field in the caller's dialect, for errors."""
    prompt_field: str
    """Name of what holds the prompt in the caller's dialect, for errors."""
    default_max_tokens: int | None = None
    """What is taken without `max_tokens`; None is all the room there is."""
    stop: tuple[str, ...] | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: Sequence[ChatMessage] | None = None
    tools: Sequence[Tool] | None = None
    """Tools of a conversation, as its template is told of them."""
    variables: Mapping[str, Any] | None = None
    truncate: int | None = None
    """Keep only that many of the last prompt tokens."""
    merged: MergedAdapter | None = None
    """Answers in place of `model`."""
    pooling: Pooling | None = None
    """Asks for the prompt's vector instead of an answer."""

    def __post_init__(self) -> None:
        # Every token is looked through for every stop string, on the loop that serves all callers.
        stop = self.stop or ()
        if len(stop) > MAX_STOP_STRINGS or not all(1 <= len(item) <= MAX_STOP_CHARACTERS for item in stop):
            raise InvalidRequest(
                f"stop must be at most {MAX_STOP_STRINGS} strings, each of 1 to {MAX_STOP_CHARACTERS} characters",
                field="stop",
            )
