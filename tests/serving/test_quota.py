"""What a key may have in a minute."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given, settings, strategies as st

from lorafleet_serving.api_keys import ApiKey
from lorafleet_serving.exceptions import QuotaExceeded
from lorafleet_serving.quota import Quota


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_key(requests: int | None = None, tokens: int | None = None) -> ApiKey:
    return ApiKey("search", "0" * 64, requests_per_minute=requests, tokens_per_minute=tokens)


def test_requests_beyond_a_minute_s_are_told_when_to_come_back() -> None:
    clock = Clock()
    quota = Quota(a_key(requests=6), clock)
    for _ in range(6):
        quota.take_request()
    with pytest.raises(QuotaExceeded, match="'search' may have 6 requests in a minute") as caught:
        quota.take_request()
    assert caught.value.retry_after_s == 10
    clock.now += 9.9
    with pytest.raises(QuotaExceeded):
        quota.take_request()
    clock.now += 0.1
    quota.take_request()


def test_an_answer_pays_for_what_it_came_to() -> None:
    quota = Quota(a_key(tokens=100), Clock())
    (reservation,) = quota.reserve([90])
    with pytest.raises(QuotaExceeded, match="11 more are too many now"):
        quota.reserve([11])
    reservation.count = lambda: 30
    reservation.close()
    for _ in range(2):
        (unused,) = quota.reserve([70])
        unused.close()  # It never began, and pays for nothing.
        unused.close()


def test_the_answers_of_a_request_begin_together_or_not_at_all() -> None:
    quota = Quota(a_key(tokens=100), Clock())
    (taken,) = quota.reserve([60])
    with pytest.raises(QuotaExceeded):
        quota.reserve([20, 21])
    taken.close()
    both = quota.reserve([50, 50])
    both[0].close()
    (other,) = quota.reserve([50])
    for reservation in (*both, other):
        reservation.close()
    quota.reserve([100])


@pytest.mark.parametrize("amounts", [[250], [100, 150], [50] * 5])
def test_more_than_a_minute_s_is_had_at_once_where_nothing_was_had_before(amounts: list[int]) -> None:
    clock = Clock()
    quota = Quota(a_key(tokens=100), clock)
    for amount, reservation in zip(amounts, quota.reserve(amounts), strict=True):
        reservation.count = lambda amount=amount: amount  # type: ignore[misc]  # Bound now, called later.
        reservation.close()
    with pytest.raises(QuotaExceeded, match="1 more are too many now") as caught:
        quota.reserve([1])
    assert caught.value.retry_after_s == 91
    with pytest.raises(QuotaExceeded, match="none are left now"):
        quota.take_request()
    with pytest.raises(QuotaExceeded, match="250 at a time need all of a minute's to be left"):
        quota.reserve(amounts)
    clock.now += 91
    quota.reserve([1])


def test_who_comes_back_when_told_is_served() -> None:
    clock = Clock()
    quota = Quota(a_key(tokens=1000), clock)
    for amounts in ([310] * 4, [500], [400, 400], [1000], [2500]):
        try:
            reserved = quota.reserve(amounts)
        except QuotaExceeded as error:
            clock.now += error.retry_after_s
            reserved = quota.reserve(amounts)
        for amount, reservation in zip(amounts, reserved, strict=True):
            reservation.count = lambda amount=amount: amount  # type: ignore[misc]  # Bound now, called later.
            reservation.close()


def test_a_key_without_limits_has_what_it_asks_for() -> None:
    quota = Quota(a_key(), Clock())
    for _ in range(1000):
        quota.take_request()
    quota.reserve([10**12])


def test_what_is_left_is_told() -> None:
    clock = Clock()
    quota = Quota(a_key(requests=6, tokens=100), clock)
    assert quota.requests == (6, 6, 0.0)
    assert quota.tokens == (100, 100, 0.0)
    quota.take_request()
    (reservation,) = quota.reserve([40])
    assert quota.requests == (6, 5, 10.0)
    assert quota.tokens == (100, 60, 24.0)
    clock.now += 5
    assert quota.requests == (6, 5, 5.0)
    reservation.close()
    assert quota.tokens == (100, 100, 0.0)
    clock.now += 60
    quota.reserve([250])
    assert quota.tokens == (100, 0, 150.0)
    assert Quota(a_key()).requests is None
    assert Quota(a_key()).tokens is None


def test_what_computes_nothing_needs_no_token() -> None:
    quota = Quota(a_key(requests=2, tokens=10), Clock())
    quota.reserve([20])
    with pytest.raises(QuotaExceeded, match="tokens"):
        quota.take_request()
    quota.take_request(computes=False)
    quota.take_request(computes=False)
    with pytest.raises(QuotaExceeded, match="requests"):
        quota.take_request(computes=False)


def test_what_was_had_stays_had_when_limits_change() -> None:
    clock = Clock()
    quota = Quota(a_key(requests=6), clock)
    for _ in range(6):
        quota.take_request()
    quota.update(a_key(requests=60))
    with pytest.raises(QuotaExceeded) as caught:
        quota.take_request()
    assert caught.value.retry_after_s == 1
    clock.now += 60
    quota.update(a_key(requests=2))
    quota.take_request()
    quota.take_request()
    with pytest.raises(QuotaExceeded):
        quota.take_request()
    quota.update(a_key())
    quota.take_request()


@settings(deadline=None)
@given(
    per_minute=st.integers(1, 1000),
    asked=st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1), st.floats(0, 30), st.booleans()), max_size=60),
)
def test_nobody_begins_more_than_two_minutes_allowance_in_a_minute(
    per_minute: int, asked: list[tuple[int, float, float, bool]]
) -> None:
    clock = Clock()
    quota = Quota(a_key(tokens=per_minute), clock)
    had: list[tuple[float, int]] = []
    told: list[int] = []
    with ExitStack() as under_way:
        for amount, share, pause_s, ends in asked:
            clock.now += pause_s
            most = min(amount, per_minute)
            try:
                (reservation,) = quota.reserve([most])
            except QuotaExceeded as error:
                told.append(error.retry_after_s)
                continue
            under_way.callback(reservation.close)
            used = int(share * most)
            reservation.count = lambda used=used: used  # type: ignore[misc]  # Bound now, called later.
            had.append((clock.now, used))
            if ends:
                under_way.close()
    assert all(1 <= seconds <= 60 for seconds in told)
    for began, _ in had:
        assert sum(used for at, used in had if began <= at < began + 60.0) <= 2 * per_minute
