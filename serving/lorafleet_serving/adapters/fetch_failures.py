"""Versions that could not be had a moment ago, and why: who asks for one is told, and nothing is tried for a while.

The pauses grow with each failure in a row, up to a limit.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from lorafleet_contract.backoff import Backoff
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.exceptions import FetchFailed

_FIRST_S = 0.5


@dataclass(frozen=True)
class _Failure:
    reason: str
    num_failures: int
    until: float
    """On the monotonic clock."""


class FetchFailures:
    """What failed last, by digest and version: versions of the same bytes have them from different places."""

    def __init__(self, longest_s: float) -> None:
        """`longest_s` is the longest pause between two tries."""
        self._backoff = Backoff(min(_FIRST_S, longest_s), longest_s)
        self._known: dict[tuple[str, str], _Failure] = {}

    def check(self, version: CatalogVersion) -> None:
        """Return if it is time to try.

        Raises:
            FetchFailed: it is not; gives the reason of the last try.
        """
        known = self._known.get(_key(version))
        if known is not None and time.monotonic() < known.until:
            raise FetchFailed(known.reason)

    def note(self, version: CatalogVersion, error: FetchFailed) -> None:
        """Remember that a try failed."""
        now = time.monotonic()
        known = self._known.get(_key(version))
        if known is not None and now < known.until:
            return  # It began before another failed, and says nothing more.
        num_failures = 1 if known is None else known.num_failures + 1
        pause_s = random.uniform(0.5, 1.0) * self._backoff.pause_s(num_failures)
        self._known[_key(version)] = _Failure(str(error), num_failures, now + pause_s)

    def forget(self, version: CatalogVersion) -> None:
        """Try it again when it is next asked for."""
        self._known.pop(_key(version), None)

    def forget_digest(self, digest: str) -> None:
        """Nobody is served with these bytes any more."""
        for key in [key for key in self._known if key[0] == digest]:
            del self._known[key]


def _key(version: CatalogVersion) -> tuple[str, str]:
    return version.digest, version.label
