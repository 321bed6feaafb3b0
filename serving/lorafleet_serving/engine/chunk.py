"""The part of a sequence that one step computes."""

from __future__ import annotations

from typing import NamedTuple

from lorafleet_serving.engine.sequence import Sequence


class Chunk(NamedTuple):
    """A sequence and how many of its tokens are computed in the step."""

    sequence: Sequence
    num_tokens: int
    guess: tuple[int, ...] = ()
    """Tokens computed behind its own: kept as far as they turn out to be its next ones."""

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return self.num_tokens + len(self.guess)

    @property
    def num_sampled(self) -> int:
        """Rows, the last ones, behind which a token is chosen."""
        return 1 + len(self.guess) if self.samples else 0

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the sequence's end, so that a token follows."""
        return self.ends and self.sequence.request.generates

    @property
    def ends(self) -> bool:
        """Whether the chunk reaches the sequence's end."""
        return self.num_tokens == self.sequence.num_remaining
