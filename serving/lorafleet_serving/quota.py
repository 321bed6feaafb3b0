"""How much a key may have in a minute: requests, and tokens of prompts and answers.

Each is a token bucket: an allowance that fills up evenly and holds a minute's at most. A request is begun where the
longest that its answers may become fits, all together, and gives back what they were not. One that asks for more than a
whole minute's finds the bucket full, or is told to come back, and what it lacks is waited for afterwards. So besides
one such request nobody begins answers of more than two minutes' allowance in any one minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lorafleet_serving.api_keys import ApiKey
from lorafleet_serving.exceptions import QuotaExceeded

_MINUTE_S = 60.0


class Allowance(NamedTuple):
    """What is left of a minute's."""

    per_minute: int
    left: int
    """0 where more was had than there was."""
    full_in_s: float


class Bucket:
    """An allowance of so many in a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._filled_at = clock()

    @property
    def allowance(self) -> Allowance:
        """What may be taken now."""
        self._fill()
        full_in_s = (self.per_minute - self._left) * _MINUTE_S / self.per_minute
        return Allowance(self.per_minute, max(math.floor(self._left), 0), full_in_s)

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
    """Tokens that an answer may come to. Must be closed; it pays for what it came to by then.

    `count` tells that, once the answer has begun.
    """

    def __init__(self, num_tokens: int = 0, bucket: Bucket | None = None) -> None:
        self._num_tokens = num_tokens
        self._bucket = bucket
        self.num_prompt = 0
        """Those of the prompt among them."""
        self.count: Callable[[], int] = _nothing

    def close(self) -> None:
        """Give back what was not used; harmless when done twice."""
        if self._bucket is not None:
            self._bucket.give_back(self._num_tokens - self.count())
            self._bucket = None


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

    @property
    def requests(self) -> Allowance | None:
        """What is left of them; None where they have no limit."""
        return None if self._requests is None else self._requests.allowance

    @property
    def tokens(self) -> Allowance | None:
        """What is left of them, with those set aside as had; None where they have no limit."""
        return None if self._tokens is None else self._tokens.allowance

    def take_request(self, *, computes: bool = True) -> None:
        """One more request. Only one that `computes` needs a token to be left.

        Raises:
            QuotaExceeded: it is one too many, or no token is left for it; says when to come back.
        """
        # Before anything is done for it: no adapter is brought, and no prompt read, for nothing.
        if computes:
            self._take(self._tokens, 0, "tokens")
        self._take(self._requests, 1, "requests")

    def reserve(self, amounts: Sequence[int]) -> list[Reservation]:
        """Tokens that each answer of a request may come to, prompt and all: those of all, or of none.

        Raises:
            QuotaExceeded: so many are not left; says when to come back.
        """
        self._take(self._tokens, sum(amounts), "tokens")
        return [Reservation(amount, self._tokens) for amount in amounts]

    def _take(self, bucket: Bucket | None, amount: int, what: str) -> None:
        wait_s = 0.0 if bucket is None else bucket.take(amount)
        if bucket is None or wait_s == 0.0:
            return
        if amount > bucket.per_minute:
            told = f"{amount} at a time need all of a minute's to be left"
        else:
            told = f"{amount} more are too many now" if amount else "none are left now"
        raise QuotaExceeded(
            f"the key {self._name!r} may have {bucket.per_minute} {what} in a minute, and {told}: "
            f"try again in {wait_s:.1f} s",
            retry_after_s=math.ceil(wait_s),
        )

    def _resized(self, bucket: Bucket | None, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket(per_minute, self._clock)
        bucket.resize(per_minute)
        return bucket


def _nothing() -> int:
    return 0
