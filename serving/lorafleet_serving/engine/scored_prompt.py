"""The log-probabilities of a prompt on their way from the engine: in arrays, which cost next to nothing to send.

An object for each would hold up the engine and the front for a third of a second where a long prompt is scored.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from lorafleet_serving.engine.request import ScoredToken, TokenLogprob


@dataclass(frozen=True)
class ScoredPrompt(Sequence[ScoredToken]):
    """Tokens of a prompt by what the model thinks of them; objects are made for those that are looked at.

    It comes in parts, each without the tokens of those before it, that `extend` puts together.
    """

    logprobs: array[float] = field(default_factory=lambda: array("f"))
    """Of each token but the first, before which there is nothing, [num_tokens - 1]."""
    alternative_ids: array[int] = field(default_factory=lambda: array("i"))
    """Likeliest first, [num_tokens - 1, num_alternatives]."""
    alternative_logprobs: array[float] = field(default_factory=lambda: array("f"))
    """Theirs, [num_tokens - 1, num_alternatives]."""

    def __len__(self) -> int:
        return len(self.logprobs) + 1

    @overload
    def __getitem__(self, place: int) -> ScoredToken: ...
    @overload
    def __getitem__(self, place: slice) -> list[ScoredToken]: ...
    def __getitem__(self, place: int | slice) -> ScoredToken | list[ScoredToken]:
        # A range knows places from the end, and which there are none of.
        places = range(len(self))[place]
        return self._token(places) if isinstance(places, int) else [self._token(item) for item in places]

    def add(self, logprobs: bytes, alternative_ids: bytes, alternative_logprobs: bytes) -> None:
        """Take those of the next tokens, as the arrays hold them."""
        self.logprobs.frombytes(logprobs)
        self.alternative_ids.frombytes(alternative_ids)
        self.alternative_logprobs.frombytes(alternative_logprobs)

    def extend(self, part: ScoredPrompt) -> None:
        """Take the next part."""
        self.logprobs.extend(part.logprobs)
        self.alternative_ids.extend(part.alternative_ids)
        self.alternative_logprobs.extend(part.alternative_logprobs)

    def _token(self, place: int) -> ScoredToken:
        if place == 0:
            return ScoredToken(None)
        num_alternatives = len(self.alternative_ids) // len(self.logprobs)
        span = slice((place - 1) * num_alternatives, place * num_alternatives)
        pairs = map(TokenLogprob, self.alternative_ids[span], self.alternative_logprobs[span])
        return ScoredToken(self.logprobs[place - 1], tuple(pairs))
