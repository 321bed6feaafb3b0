from __future__ import annotations

import random

import pytest

from lorafleet_serving.engine.prefill_pace import FEWEST_TOKENS, PrefillPace


def settle(pace: PrefillPace, decode_s: float, token_s: float, num_steps: int = 30) -> float:
    """How many times a decode the last of some steps took, on a machine with such costs."""
    for _ in range(num_steps):
        pace.observe(8, 0, decode_s)
        seconds = decode_s + pace.num_tokens(8) * token_s
        pace.observe(8, pace.num_tokens(8), seconds)
    return seconds / decode_s


@pytest.mark.parametrize("token_s", [0.0001, 0.0005, 0.001])
def test_steps_with_prompts_last_as_long_as_they_may(token_s: float) -> None:
    assert settle(PrefillPace(2.5, 512), 0.03, token_s) == pytest.approx(2.5, abs=0.1)


def test_steps_follow_a_prompt_that_becomes_dearer() -> None:
    pace = PrefillPace(2.5, 512)
    settle(pace, 0.03, 0.0002)
    assert settle(pace, 0.03, 0.002, num_steps=8) <= 2.6


def test_a_prompt_goes_on_even_where_its_tokens_are_dear() -> None:
    pace = PrefillPace(2.5, 512)
    settle(pace, 0.001, 0.1)
    assert pace.num_tokens(8) == FEWEST_TOKENS


def test_no_more_than_the_budget_of_a_step_is_taken() -> None:
    pace = PrefillPace(1000.0, 64)
    settle(pace, 0.03, 0.00001)
    assert pace.num_tokens(8) == 64


def test_one_quick_step_does_not_make_the_next_one_long() -> None:
    pace = PrefillPace(2.5, 512)
    settle(pace, 0.03, 0.001)
    before = pace.num_tokens(8)
    pace.observe(8, before, 0.03)
    assert pace.num_tokens(8) <= 1.5 * before


def test_steps_stay_short_on_a_machine_that_others_disturb() -> None:
    """One step in ten lasts three times as long as it would."""
    pace, chance = PrefillPace(2.5, 512), random.Random(0)
    lengths = []
    for _ in range(40):  # Prompts of forty steps, and pauses.
        for is_prompt in [True] * 40 + [False] * 60:
            num_tokens = pace.num_tokens(8) if is_prompt else 0
            undisturbed = 0.03 + num_tokens * 0.0005
            pace.observe(8, num_tokens, undisturbed * (3 if chance.random() < 0.1 else 1))
            if is_prompt:
                lengths.append(undisturbed / 0.03)
    assert sorted(lengths)[len(lengths) * 95 // 100] <= 2.6
    assert sum(lengths) / len(lengths) >= 1.4


def test_each_number_of_decodes_has_a_cost_of_its_own() -> None:
    pace = PrefillPace(2.5, 512)
    for _ in range(30):
        pace.observe(1, 0, 0.01)
        pace.observe(32, 0, 0.04)
        for num_decodes, decode_s in ((1, 0.01), (32, 0.04)):
            num_tokens = pace.num_tokens(num_decodes)
            pace.observe(num_decodes, num_tokens, decode_s + num_tokens * 0.001)
    assert pace.num_tokens(1) == pytest.approx(15, abs=1)
    for _ in range(5):
        pace.observe(32, 20, 0.06)
    assert pace.num_tokens(32) == pytest.approx(60, abs=1)
    assert pace.num_tokens(1) == pytest.approx(15, abs=1)


def test_decoding_is_measured_where_prompts_never_end() -> None:
    """From one sequence to many without a step that only decodes."""
    pace = PrefillPace(2.5, 512)
    pace.observe(1, 0, 0.008)
    taken = []
    for _ in range(200):
        num_tokens = pace.num_tokens(32)
        pace.observe(32, num_tokens, 0.03 + num_tokens * 0.0005)
        taken.append(num_tokens)
    assert max(taken[-60:]) == pytest.approx(90, abs=5)
    assert sum(taken) / len(taken) > 70


def test_steps_without_decodes_teach_nothing() -> None:
    pace = PrefillPace(2.5, 512)
    before = pace.num_tokens(8)
    pace.observe(0, 512, 10.0)
    assert pace.num_tokens(8) == before
