"""What a caller asks, in either dialect."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorafleet_serving.adapters.merged import MergedAdapter
from lorafleet_serving.api.schemas import MAX_PROMPT_LOGPROBS, MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
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
    fewest_tokens: int = 1
    """The least that `max_tokens` may be: with 0 the prompt alone is read."""
    prompt_logprobs_field: str = "logprobs"
    """Name of what asks for the log-probabilities of the prompt in the caller's dialect, for errors."""
    is_repeated: bool = False
    """Whether it asks for one more answer to the prompt of the question before it in its request."""
    asked_at: float = field(default_factory=time.monotonic, compare=False)
    """When it was read, on the clock of `time.monotonic`."""

    def __post_init__(self) -> None:
        # Every token is looked through for every stop string, on the loop that serves all callers.
        stop = self.stop or ()
        if len(stop) > MAX_STOP_STRINGS or not all(1 <= len(item) <= MAX_STOP_CHARACTERS for item in stop):
            raise InvalidRequest(
                f"stop must be at most {MAX_STOP_STRINGS} strings, each of 1 to {MAX_STOP_CHARACTERS} characters",
                field="stop",
            )

    def num_prompt_logprobs(self, num_prompt: int) -> int:
        """Log-probabilities, those of alternatives among them, that a prompt of so many tokens gets."""
        num_alternatives = self.sampling.num_prompt_logprobs
        return 0 if num_alternatives is None else num_prompt * (num_alternatives + 1)

    def check_prompt_logprobs(self, num_prompt: int, num_before: int) -> None:
        """Turn away a prompt that gets too many log-probabilities beside those of other prompts of the request.

        Raises:
            InvalidRequest: there are too many.
        """
        wanted = num_before + self.num_prompt_logprobs(num_prompt)
        if wanted > MAX_PROMPT_LOGPROBS:
            field = self.prompt_logprobs_field
            raise InvalidRequest(
                f"{field} asks for {wanted} log-probabilities of prompts, a request may have {MAX_PROMPT_LOGPROBS}: "
                "send shorter or fewer prompts, or ask for fewer alternatives",
                field=field,
            )
