"""Scores of a prompt: a sequence like any other, and as small on its way as the numbers in it."""

from __future__ import annotations

import pickle
from array import array

import pytest

from lorafleet_serving.engine.request import ScoredToken, TokenLogprob
from lorafleet_serving.engine.scored_prompt import ScoredPrompt


def scored(num_tokens: int, num_alternatives: int) -> ScoredPrompt:
    num_scored = num_tokens - 1
    ids = array("i", range(num_scored * num_alternatives))
    scores = ScoredPrompt()
    # In two parts, as a prompt is read.
    for rows in (range(num_scored // 2), range(num_scored // 2, num_scored)):
        span = slice(rows.start * num_alternatives, rows.stop * num_alternatives)
        logprobs = array("f", [-row for row in rows])
        values = array("f", [-0.5 * item for item in ids[span]])
        scores.add(logprobs.tobytes(), ids[span].tobytes(), values.tobytes())
    return scores


def test_its_tokens_are_found_by_place_and_by_slice() -> None:
    scores = scored(4, 2)
    second = ScoredToken(0.0, (TokenLogprob(0, 0.0), TokenLogprob(1, -0.5)))
    last = ScoredToken(-2.0, (TokenLogprob(4, -2.0), TokenLogprob(5, -2.5)))
    assert len(scores) == 4
    assert scores[:2] == [ScoredToken(None), second]
    assert scores[-1] == scores[3] == list(scores)[3] == last
    with pytest.raises(IndexError):
        scores[4]


def test_one_token_and_no_alternatives() -> None:
    assert list(ScoredPrompt()) == [ScoredToken(None)]
    assert scored(3, 0)[1:] == [ScoredToken(0.0), ScoredToken(-1.0)]


def test_its_message_holds_numbers_alone() -> None:
    scores = scored(8192, 7)
    message = pickle.dumps(scores)
    assert len(message) < 8191 * (4 + 7 * 8) + 1000
    assert pickle.loads(message) == scores
