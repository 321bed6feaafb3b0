"""What a key may still have, in the headers that OpenAI's clients read."""

from __future__ import annotations

import math

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from lorafleet_serving.quota import Allowance, Quota

_PREFIX = "x-ratelimit"
_KINDS = ("requests", "tokens")

RATE_HEADERS = {
    f"{_PREFIX}-{part}-{kind}": told.format(kind)
    for kind in _KINDS
    for part, told in (
        ("limit", "Most {} that the key may have in a minute"),
        ("remaining", "Those {} that are left now"),
        ("reset", "After which all {} of a minute are there again, such as `6m0s` or `20ms`"),
    )
}
"""Headers of answers to a key with limits, and what they tell."""


def sends_rates(quota: Quota, send: Send) -> Send:
    """Send answers with what is left when they begin; of two limits, those that the key has."""

    async def send_with_rates(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for kind, allowance in zip(_KINDS, (quota.requests, quota.tokens), strict=True):
                if allowance is not None:
                    headers.update(_told(kind, allowance))
        await send(message)

    return send_with_rates


def _told(kind: str, allowance: Allowance) -> dict[str, str]:
    return {
        f"{_PREFIX}-limit-{kind}": str(allowance.per_minute),
        f"{_PREFIX}-remaining-{kind}": str(allowance.left),
        f"{_PREFIX}-reset-{kind}": duration(allowance.full_in_s),
    }


def duration(seconds: float) -> str:
    """A time as OpenAI writes it, rounded up: `0s`, `20ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
