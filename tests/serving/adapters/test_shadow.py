"""What is told of a shadow's answers beside the champion's."""

from __future__ import annotations

from lorafleet_serving.adapters.answer_watch import WatchedAnswer
from lorafleet_serving.adapters.evidence import AnswerSeen
from lorafleet_serving.adapters.shadow import Shadow

FINE = WatchedAnswer(AnswerSeen(first_token_s=0.01, token_s=0.01, mean_logprob=-1.0), (1, 2, 3))


def make_shadow() -> Shadow:
    return Shadow(champion=1, version=2, digest="digest", window_s=300.0)


def compare(own: WatchedAnswer, num_times: int = 40) -> Shadow:
    shadow = make_shadow()
    for _ in range(num_times):
        shadow.compare(FINE, own)
    return shadow


def test_answers_that_are_alike_are_counted() -> None:
    shadow = compare(FINE)
    shadow.compare(FINE, FINE._replace(token_ids=(1, 2)))
    assert (shadow.num_answers, shadow.num_same, shadow.doubt) == (41, 40, None)


def test_being_slow_is_held_against_no_shadow() -> None:
    slow = AnswerSeen(first_token_s=9.0, token_s=9.0, mean_logprob=-1.0)
    assert compare(FINE._replace(seen=slow)).doubt is None


def test_failures_are_told_and_are_no_answers_alike() -> None:
    shadow = compare(WatchedAnswer(AnswerSeen(failed="it broke"), FINE.token_ids))
    assert shadow.num_same == 0
    assert "it broke" in str(shadow.doubt)


def test_answers_that_it_is_less_sure_of_are_told() -> None:
    unsure = WatchedAnswer(AnswerSeen(mean_logprob=-4.0), FINE.token_ids)
    assert "log-probability" in str(compare(unsure).doubt)
