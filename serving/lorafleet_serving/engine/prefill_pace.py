"""How many tokens of prompts a step takes beside decodes, learnt from how long steps last.

A step with prompts is to last at most `max_stretch` times as long as one that only decodes, so that a long prompt does
not hold up running answers. What a prompt's token costs depends on machine, model, and how far the prompt has come; so
it is measured all the time instead of set. Prompts get at least the share `1 - 1 / max_stretch` of the time.
"""

from __future__ import annotations

FEWEST_TOKENS = 8
"""A prompt always goes on."""
_FIRST_TOKENS = 32
"""Taken while nothing is known."""
_MOST_GROWTH = 1.5
"""From one step to the next: a single quick step is no reason for a long one."""
_DECODE_WEIGHT = 0.2
"""Of the newest step that only decodes in the average of those before."""
_TOKEN_WEIGHT = 0.5


class PrefillPace:
    """Knows the recent cost of decoding and of a prompt's token, in seconds."""

    def __init__(self, max_stretch: float, most_tokens: int) -> None:
        self._max_stretch = max_stretch
        self._most_tokens = most_tokens
        self._decode_s: float | None = None
        self._token_s: float | None = None
        self._last = float(_FIRST_TOKENS)
        """Tokens that the last step might have taken."""

    @property
    def num_tokens(self) -> int:
        """How many tokens of prompts the next step may take, if it decodes."""
        return max(1, min(self._most_tokens, int(self._last)))

    def observe(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """A step has been computed."""
        if not num_decodes:
            return
        if not num_prefill_tokens:
            self._decode_s = _blend(self._decode_s, seconds, _DECODE_WEIGHT)
            return
        if self._decode_s is None:
            return  # What the decodes among it cost is not known yet.
        # Not below a twentieth of a step: a chunk that seems free only was in a step that happened to be quick.
        token_s = max(seconds - self._decode_s, 0.05 * seconds) / num_prefill_tokens
        self._token_s = _blend(self._token_s, token_s, _TOKEN_WEIGHT)
        wanted = (self._max_stretch - 1.0) * self._decode_s / self._token_s
        self._last = max(FEWEST_TOKENS, min(wanted, self._last * _MOST_GROWTH, self._most_tokens))


def _blend(average: float | None, newest: float, weight: float) -> float:
    return newest if average is None else average + weight * (newest - average)
