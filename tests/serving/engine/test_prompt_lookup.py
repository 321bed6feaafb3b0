"""Guesses from what a sequence has read and said."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from lorafleet_serving.engine.prompt_lookup import PromptLookup


def test_what_followed_last_time_is_guessed() -> None:
    assert PromptLookup(4).guess([1, 2, 3, 4, 5, 6, 9, 1, 2], most=4) == (3, 4, 5, 6)


def test_the_latest_place_counts() -> None:
    assert PromptLookup(2).guess([1, 2, 3, 4, 9, 1, 2, 5, 6, 8, 1, 2], most=2) == (5, 6)


def test_three_equal_tokens_count_more_than_two() -> None:
    assert PromptLookup(1).guess([7, 1, 2, 3, 9, 1, 2, 4, 7, 1, 2], most=1) == (3,)


def test_what_repeats_is_taken_to_repeat_again() -> None:
    assert PromptLookup(7).guess([5, 1, 2, 3, 1, 2, 3], most=7) == (1, 2, 3, 1, 2, 3, 1)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4, 5], [1, 2, 1, 3]])
def test_nothing_is_guessed_where_nothing_was_said_twice(tokens: list[int]) -> None:
    assert PromptLookup(4).guess(tokens, most=4) == ()


def test_no_more_than_allowed_is_guessed() -> None:
    lookup, tokens = PromptLookup(4), [1, 2, 3, 4, 5, 6, 1, 2]
    assert [len(lookup.guess(tokens, most)) for most in (3, 1, 0, -1)] == [3, 1, 0, 0]


def test_wrong_guesses_become_rare_and_right_ones_long() -> None:
    lookup, tokens = PromptLookup(4), [1, 2] * 8
    lengths = []
    for _ in range(40):
        lengths.append(len(lookup.guess(tokens, most=4)))
        if lengths[-1]:
            lookup.judge(lengths[-1], 0)
    assert lengths[:4] == [4, 2, 1, 0]
    assert sum(lengths) <= 4 + 2 + 1 + 2
    while not (length := len(lookup.guess(tokens, most=4))):
        pass
    assert length == 1
    lookup.judge(1, 1)
    assert len(lookup.guess(tokens, most=4)) == 2


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 7))
def test_learning_step_by_step_or_at_once_is_the_same(tokens: list[int], most: int) -> None:
    stepwise = PromptLookup(most)
    for end in range(1, len(tokens) + 1):
        guess = stepwise.guess(tokens[:end], most)
        assert guess == PromptLookup(most).guess(tokens[:end], most)
        assert set(guess) <= set(tokens[:end])
