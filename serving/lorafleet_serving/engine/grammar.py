"""Where a constrained answer stands in its grammar: which tokens may come next, and whether it may end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher

_MAX_REASON_CHARACTERS = 300


class Grammar:
    """State of one answer. It stays with its sequence, so that a preemption costs nothing."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.mask = b""
        """One bit for each token, from the lowest of the first byte on: whether it may come next."""

    def fork(self) -> Grammar:
        """Another answer that stands at the same place."""
        return Grammar(self._matcher.deep_copy())

    def look(self) -> bool:
        """Work out `mask`; False if no token may come next, which `error` explains."""
        self.mask = self._matcher.compute_bitmask()
        return not self._matcher.is_error()

    def accept(self, token_id: int) -> None:
        """Go on by a token of `mask`."""
        self._matcher.consume_token(token_id)

    @property
    def is_over(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> str | None:
        """Why there is no way on: no token of the model fits, or a limit was reached."""
        return matcher_error(self._matcher) if self._matcher.is_error() else None


def matcher_error(matcher: LLMatcher) -> str:
    """What the library says of a grammar that it gave up, on one line."""
    lines = [line for line in matcher.get_error().splitlines() if line.strip() and "non-verbose" not in line]
    reason = "; ".join(line.strip() for line in lines)[:_MAX_REASON_CHARACTERS]
    return "no token of the model fits" if reason.startswith("NoExtension") else reason
