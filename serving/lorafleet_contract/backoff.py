"""How long to wait before what failed is tried again: twice as long each time, up to a limit."""

from __future__ import annotations

from dataclasses import dataclass

_MOST_DOUBLINGS = 64
"""Beyond any limit. What fails for hours comes to a thousand doublings, and their power of two is no float."""


@dataclass(frozen=True)
class Backoff:
    """The pauses between tries."""

    first_s: float
    longest_s: float

    def pause_s(self, num_failures: int) -> float:
        """The pause after so many failures in a row; none where nothing has failed."""
        if num_failures < 1:
            return 0.0
        return min(self.first_s * 2.0 ** min(num_failures - 1, _MOST_DOUBLINGS), self.longest_s)
