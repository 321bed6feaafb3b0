"""How soon a bad challenger is found out, and that a good one never is."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

import pytest

from lorafleet_serving.adapters.evidence import AnswerSeen, Evidence, is_looping

Answer = Callable[[random.Random], AnswerSeen]


def good(draw: random.Random) -> AnswerSeen:
    """An answer of real traffic: some fail, some are empty, some end at their length, and times vary by far."""
    if draw.random() < 0.01:
        return AnswerSeen(failed="the engine gave up")
    return AnswerSeen(
        is_empty=draw.random() < 0.02,
        is_cut=draw.random() < 0.3,
        is_looping=draw.random() < 0.05,
        first_token_s=draw.lognormvariate(-2, 0.8),
        token_s=draw.lognormvariate(-3.5, 0.5),
        mean_logprob=draw.gauss(-0.8, 0.4),
    )


def changed(**fields: object) -> Answer:
    def answer(draw: random.Random) -> AnswerSeen:
        seen = good(draw)
        return AnswerSeen(**{**vars(seen), **fields})

    return answer


def slow(draw: random.Random) -> AnswerSeen:
    seen = good(draw)
    return AnswerSeen(**{**vars(seen), "token_s": 3 * (seen.token_s or 0.03)})


def late(draw: random.Random) -> AnswerSeen:
    seen = good(draw)
    return AnswerSeen(**{**vars(seen), "first_token_s": 5 * (seen.first_token_s or 0.1)})


def run(challenger: Answer, seed: int, *, requests: int, share: float = 0.1) -> tuple[int, str | None]:
    """Answers that a challenger gave until it was found out, and why it was."""
    draw, found = random.Random(seed), Evidence(300.0)
    for _ in range(requests):
        if draw.random() < share:
            if reason := found.note_challenger(challenger(draw)):
                return found.num_answers, reason
        else:
            found.note_champion(good(draw))
    return found.num_answers, None


@pytest.mark.parametrize("seed", range(20))
def test_a_good_challenger_is_never_found_out(seed: int) -> None:
    assert run(good, seed, requests=2000)[1] is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("challenger", "most_answers", "told"),
    [
        (changed(failed="values that are not finite"), 8, "failed.*values that are not finite"),
        (changed(is_looping=True), 16, "repeating themselves"),
        (changed(is_empty=True), 12, "empty"),
        (changed(is_cut=True), 60, "cut off"),
        (slow, 60, "s per token"),
        (late, 60, "s to the first token"),
        (changed(mean_logprob=-4.0), 30, "log-probability"),
    ],
)
def test_a_bad_challenger_is_found_out_after_few_answers(
    challenger: Answer, most_answers: int, told: str, seed: int
) -> None:
    num_answers, reason = run(challenger, seed, requests=2000)
    assert reason is not None
    assert num_answers <= most_answers
    assert re.search(told, reason)


def test_failures_count_where_no_champion_answers() -> None:
    found = Evidence(300.0)
    reasons = [found.note_challenger(AnswerSeen(failed="it broke")) for _ in range(10)]
    assert reasons[0] is None
    assert reasons[-1] is not None


def test_traits_do_not_count_where_no_champion_answers() -> None:
    found = Evidence(300.0)
    assert not any(found.note_challenger(AnswerSeen(is_cut=True, is_empty=True)) for _ in range(100))


def test_what_is_older_than_the_window_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = Evidence(10.0)
    for _ in range(50):
        found.note_champion(AnswerSeen())
    for _ in range(40):
        assert found.note_challenger(AnswerSeen(failed="it broke")) is None
        now += 6.0  # Never more than two within the window.


@pytest.mark.parametrize(
    ("token_ids", "loops"),
    [
        ([7] * 60, True),
        ([1, 2, 3] * 30, True),
        ([9, 8, *range(16)] + [*range(16)] * 3, True),
        ([*range(100)], False),
        ([7] * 40, False),
        ([*range(20)] * 5, False),
        ([*range(50), *[1, 2] * 10], False),
        ([], False),
    ],
)
def test_a_loop_is_a_few_tokens_again_and_again(token_ids: list[int], loops: bool) -> None:
    assert is_looping(token_ids) is loops
