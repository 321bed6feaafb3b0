"""How many tokens of prompts a step takes beside decodes, learnt from how long steps last.

A step with prompts is to last at most `max_stretch` times as long as one that only decodes, so that a long prompt does
not hold up running answers. What a prompt's token costs depends on machine, model, and how far the prompt has come, and
what decoding costs on the number of sequences; so both are measured all the time instead of set. Prompts get at least
the share `1 - 1 / max_stretch` of the time.

Where prompts come without end no step only decodes: then one in many, which do not count for that share, takes a single
token of them, and shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FEWEST_TOKENS = 8
"""A prompt always goes on."""
_FIRST_TOKENS = 32
"""Taken while nothing is known of what a prompt's token costs."""
_MOST_GROWTH = 1.5
"""From one step to the next: a single quick step is no reason for a long one."""
_STALE_STEPS = 64
"""Steps after which the cost of decoding is measured again."""


class _Weights(NamedTuple):
    """Of the newest measurement in what was reckoned with so far."""

    above: float
    """Where it is more."""
    below: float
    """Where it is less."""

    def blend(self, reckoned: float | None, newest: float) -> float:
        """What is reckoned with from now on."""
        if reckoned is None:
            return newest
        return reckoned + (self.above if newest > reckoned else self.below) * (newest - reckoned)


# Hardly a step is to last longer than it may, on a machine that others disturb too. So what counts is not a mean, but
# what decoding costs undisturbed, and what a prompt's token costs at most, now and then aside.
_OF_DECODE = _Weights(above=0.05, below=0.3)
_OF_TOKEN = _Weights(above=0.7, below=0.1)


@dataclass
class _DecodeCost:
    seconds: float
    num_steps: int
    """Number of the step that it was last measured in."""


class PrefillPace:
    """Knows the recent cost of decoding, by the number of sequences, and of a prompt's token, in seconds."""

    def __init__(self, max_stretch: float, most_tokens: int) -> None:
        self._max_stretch = max_stretch
        self._most_tokens = most_tokens
        self._decodes: dict[int, _DecodeCost] = {}
        """By the number of sequences, each twice as many as the one before."""
        self._token_s: float | None = None
        self._last = float(_FIRST_TOKENS)
        """Tokens that the last step might have taken."""
        self._num_steps = 0

    def num_tokens(self, num_decodes: int) -> int:
        """How many tokens of prompts the next step may take beside decodes."""
        decode = self._decodes.get(num_decodes.bit_length())
        if decode is None or self._num_steps - decode.num_steps > _STALE_STEPS:
            return 1
        return max(1, min(self._most_tokens, int(min(self._last, self._wanted(decode)))))

    def observe(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """A step has been computed."""
        if not num_decodes:
            return
        self._num_steps += 1
        decode = self._decodes.get(num_decodes.bit_length())
        if num_prefill_tokens <= 1:
            reckoned = _OF_DECODE.blend(None if decode is None else decode.seconds, seconds)
            self._decodes[num_decodes.bit_length()] = _DecodeCost(reckoned, self._num_steps)
            return
        if decode is None:
            return  # What the decodes among it cost is not known yet.
        # Not below a twentieth of a step: a chunk that seems free only was in a step that happened to be quick.
        token_s = max(seconds - decode.seconds, 0.05 * seconds) / num_prefill_tokens
        self._token_s = _OF_TOKEN.blend(self._token_s, token_s)
        self._last = min(self._wanted(decode), self._last * _MOST_GROWTH, self._most_tokens)

    def _wanted(self, decode: _DecodeCost) -> float:
        if self._token_s is None:
            return _FIRST_TOKENS
        return max(FEWEST_TOKENS, (self._max_stretch - 1.0) * decode.seconds / self._token_s)
