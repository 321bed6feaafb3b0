"""Guesses of what a sequence says next: what followed when it last said, or read, the same tokens.

Prompt lookup decoding (Saxena, 2023): no second model, only the sequence's own tokens. It pays where answers repeat
their prompts. The guess is checked by computing it: see `Engine`.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

_LENGTHS = (3, 2)
"""Tokens that must be the same, the longer first."""
_PAUSE = 16
"""Answer tokens without a guess after guesses that came to nothing."""


class PromptLookup:
    """Knows where a sequence's short runs of tokens last ended."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._num_wanted = most_tokens
        """Tokens of the next guess: more after one that was right, fewer after one that was wrong."""
        self._num_paused = 0
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_known = 0
        """Tokens at the front that followed a run in `_ends`."""

    def guess(self, token_ids: Rows[int], most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow; none where nothing like it was said."""
        if self._num_paused:
            self._num_paused -= 1
            self._num_wanted = max(self._num_wanted, int(not self._num_paused))
            return ()
        self._learn(token_ids)
        start = self._find(token_ids)
        if start is None:
            return ()
        # A guess that reaches the end goes on with itself: what repeats is taken to repeat again.
        period = len(token_ids) - start
        return tuple(token_ids[start + i % period] for i in range(min(most, self._num_wanted)))

    def judge(self, num_guessed: int, num_right: int) -> None:
        """The last guess has been computed."""
        if num_right == num_guessed:
            self._num_wanted = min(self._most_tokens, max(1, 2 * self._num_wanted))
        elif not num_right:
            self._num_wanted //= 2
            self._num_paused = 0 if self._num_wanted else _PAUSE

    def _learn(self, token_ids: Rows[int]) -> None:
        for end in range(max(self._num_known, min(_LENGTHS)), len(token_ids)):
            for length in _LENGTHS:
                if length <= end:
                    self._ends[tuple(token_ids[end - length : end])] = end
        self._num_known = len(token_ids)

    def _find(self, token_ids: Rows[int]) -> int | None:
        found = (self._ends.get(tuple(token_ids[-length:])) for length in _LENGTHS)
        return next((end for end in found if end is not None), None)
