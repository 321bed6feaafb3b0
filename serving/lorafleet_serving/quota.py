"""How much a key may have in a minute: requests, and tokens of prompts and answers.

Each is a token bucket: an allowance that fills up evenly and holds a minute's at most. An answer is begun where the
longest that it may become fits, and gives back what it was not; so nobody has more than two minutes' allowance in any
one minute, whatever is under way. Where more is asked for at a time than a whole minute's, the bucket must be full, and
what it lacks is waited for afterwards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lorafleet_serving.api_keys import ApiKey
from lorafleet_serving.exceptions import QuotaExceeded

_MINUTE_S = 60.0


class Bucket:
    """An allowance of so many in a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._filled_at = clock()

    def resize(self, per_minute: int) -> None:
        """Allow so many from now on."""
        self._fill()
        self.per_minute, self._left = per_minute, min(self._left, per_minute)

    def take(self, amount: int) -> float:
        """Take so many where they are there; else the seconds after which to ask again, and nothing is taken."""
        self._fill()
        lacking = min(amount, self.per_minute) - self._left
        if lacking > 0:
            return lacking * _MINUTE_S / self.per_minute
        self._left -= amount
        return 0.0

    def give_back(self, amount: int) -> None:
        """So many were not used."""
        self._fill()
        self._left = min(self._left + amount, self.per_minute)

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(self._left + (now - self._filled_at) * self.per_minute / _MINUTE_S, self.per_minute)
        self._filled_at = now


class Reservation:
    """Tokens that an answer may come to. `count` tells, once it has begun, what it has come to."""

    def __init__(self) -> None:
        self.count: Callable[[], int] = _nothing


class Quota:
    """What one key may have; None leaves either of the two without a limit."""

    def __init__(self, key: ApiKey, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._name = key.name
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.update(key)

    def update(self, key: ApiKey) -> None:
        """Allow from now on what the key says now; what was had stays had."""
        self._requests = self._resized(self._requests, key.requests_per_minute)
        self._tokens = self._resized(self._tokens, key.tokens_per_minute)

    def take_request(self) -> None:
        """One more request.

        Raises:
            QuotaExceeded: it is one too many; says when to come back.
        """
        self._take(self._requests, 1, "requests")

    @contextmanager
    def reserved(self, num_tokens: int) -> Iterator[Reservation]:
        """Tokens that an answer may come to, prompt and all, are its own meanwhile; it pays for what it came to.

        Raises:
            QuotaExceeded: so many are not left; says when to come back.
        """
        bucket, reservation = self._tokens, Reservation()
        self._take(bucket, num_tokens, "tokens")
        try:
            yield reservation
        finally:
            if bucket is not None:
                bucket.give_back(num_tokens - reservation.count())

    def _take(self, bucket: Bucket | None, amount: int, what: str) -> None:
        wait_s = 0.0 if bucket is None else bucket.take(amount)
        if bucket is not None and wait_s > 0:
            told = (
                f"the key {self._name!r} may have {bucket.per_minute} {what} in a minute, and {amount} are too many now"
            )
            raise QuotaExceeded(f"{told}: try again in {wait_s:.1f} s", retry_after_s=math.ceil(wait_s))

    def _resized(self, bucket: Bucket | None, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket(per_minute, self._clock)
        bucket.resize(per_minute)
        return bucket


def _nothing() -> int:
    return 0
