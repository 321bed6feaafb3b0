"""Metrics against cases worked out by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from lorafleet_pipeline.evaluation.metrics import (
    SCORES,
    accuracy,
    entity_f1,
    exact_match,
    last_number,
    rouge_l,
)
from lorafleet_pipeline.spec import Metric


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The CAT, sat!", "the cat sat", 1.0),
        ("the cat", "the cat sat", 2 * 2 / 5),
        ("sat cat the", "the cat sat", 2 * 1 / 6),
        # Longest common subsequence: police the gunman.
        ("police kill the gunman", "police killed the gunman", 2 * 3 / 8),
        # Subsequence, not substring: a b d of a b c d.
        ("a b c d", "a x b y d", 2 * 3 / 9),
        ("dogs", "cats", 0.0),
        ("", "cats", 0.0),
        ("", "", 0.0),
        ("it's 3.5", "it s 3 5", 1.0),
    ],
)
def test_rouge_l(answer: str, reference: str, score: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(score)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_rouge_l_is_symmetric_and_1_for_equal_texts_alone(left: list[str], right: list[str]) -> None:
    one, other = " ".join(left), " ".join(right)
    assert rouge_l(one, other) == rouge_l(other, one)
    assert (rouge_l(one, other) == 1.0) == (left == right != [])


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        (" Positive. ", "positive", 1.0),
        ("card  arrival", "Card arrival", 1.0),
        ("3", "3.0", 1.0),
        ("positive", "negative", 0.0),
        ("1 is it", "1", 0.0),
        ("extremely positive", "positive", 0.0),
        ("", "positive", 0.0),
    ],
)
def test_accuracy(answer: str, reference: str, score: float) -> None:
    assert accuracy(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [(" SELECT 1\n", "SELECT 1", 1.0), ("select 1", "SELECT 1", 0.0), ("", "x", 0.0)],
)
def test_exact_match(answer: str, reference: str, score: float) -> None:
    assert exact_match(answer, reference) == score


REFERENCE = json.dumps({"person": ["Ann"], "place": ["Oslo", "Rome"]})


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (REFERENCE, 1.0),
        (json.dumps({"place": ["Rome", "Oslo"], "person": ["Ann"], "event": []}), 1.0),
        # Right: Ann, Oslo. Missed: Rome. Wrong: Bo. F1 = 2 * 2 / (3 + 3).
        (json.dumps({"person": ["Ann", "Bo"], "place": ["Oslo"]}), 2 / 3),
        # The right text under the wrong type is wrong twice over.
        (json.dumps({"person": ["Oslo"], "place": []}), 0.0),
        # Said twice counts once: 2 * 1 / (2 + 3).
        (json.dumps({"person": ["Ann", "Ann"]}), 2 / 5),
        (json.dumps({"person": [], "place": []}), 0.0),
        ("", 0.0),
        (REFERENCE[:-1], 0.0),
        ('["Ann"]', 0.0),
        ('{"person": "Ann"}', 0.0),
        ('{"person": [1]}', 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_entity_f1(answer: str, score: float) -> None:
    assert entity_f1(answer, REFERENCE) == pytest.approx(score)


def test_no_entities_where_there_are_none_is_right() -> None:
    assert entity_f1('{"person": []}', '{"place": []}') == 1.0
    assert entity_f1('{"person": ["Ann"]}', '{"place": []}') == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("9 * 2 = 18", "She makes $<<9*2=18>>18.\n#### 18", 1.0),
        ("so it is $1,800.00", "#### 1800", 1.0),
        ("18 and then 19", "#### 18", 0.0),
        ("it is -3", "#### 3", 0.0),
        ("none", "#### 18", 0.0),
        ("between 5-10", "#### 10", 1.0),
        ("10 - 15 = -5", "#### -5", 1.0),
        ("the primes 2,3,5", "#### 5", 1.0),
        ("it is .5", "#### 0.5", 1.0),
        ("1,234,567.", "#### 1234567", 1.0),
    ],
)
def test_last_number(answer: str, reference: str, score: float) -> None:
    assert last_number(answer, reference) == score


@pytest.mark.parametrize(("metric", "reference"), [(entity_f1, "Ann"), (last_number, "no number")])
def test_a_reference_that_does_not_fit_is_an_error(metric: object, reference: str) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="reference"):
        metric("1", reference)


def test_every_metric_of_a_spec_has_a_score() -> None:
    assert set(SCORES) == set(Metric)
