"""The gate's checks."""

from __future__ import annotations

import pytest

from lorafleet_contract.states import GateStatus
from lorafleet_pipeline.evaluation.gate import MIN_ROWS, Scores, Verdict, judge
from lorafleet_pipeline.spec import GateSection

LOW, HIGH = [0.2, 0.3] * 50, [0.6, 0.7] * 50


def _judge(scores: Scores, **gate: float) -> Verdict:
    return judge(GateSection(**gate), scores, scores.interval(seed=0), "rougeL", "version 7")


def _failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_clear_gain_passes_and_gives_no_reason() -> None:
    verdict = _judge(Scores(LOW, HIGH), min_lift=0.3)
    assert (verdict.status, verdict.reason) == (GateStatus.PASSED, "")


def test_too_small_a_lift_fails_naming_value_and_limit() -> None:
    verdict = _judge(Scores(LOW, HIGH), min_lift=0.5)
    assert _failed(verdict) == ["min_lift"]
    assert "lift +0.4000, gate.min_lift is +0.5000" in verdict.reason


def test_a_gain_that_may_be_chance_fails() -> None:
    verdict = _judge(Scores([0.0, 1.0] * 15, [1.0, 0.0] * 14 + [1.0, 1.0]))
    assert _failed(verdict) == ["beats_base"]


@pytest.mark.parametrize(("scores", "passes"), [(Scores(HIGH, HIGH), False), (Scores(HIGH, LOW), False)])
def test_no_gain_fails(scores: Scores, passes: bool) -> None:
    assert (_judge(scores).status is GateStatus.PASSED) is passes


def test_negative_min_lift_tolerates_as_much_below_the_base() -> None:
    assert _judge(Scores(HIGH, HIGH), min_lift=-0.1).status is GateStatus.PASSED
    assert _failed(_judge(Scores(HIGH, LOW), min_lift=-0.1)) == ["min_lift", "beats_base"]


def test_regression_beyond_the_tolerance_fails() -> None:
    champion = [score + 0.05 for score in HIGH]
    assert _failed(_judge(Scores(LOW, HIGH, champion))) == ["no_regression"]
    assert _judge(Scores(LOW, HIGH, champion), max_regression=0.06).status is GateStatus.PASSED
    assert _judge(Scores(LOW, HIGH, LOW)).status is GateStatus.PASSED


def test_too_few_rows_fail() -> None:
    assert _failed(_judge(Scores(LOW[: MIN_ROWS - 1], HIGH[: MIN_ROWS - 1]))) == ["enough_rows"]


def test_a_difference_of_exactly_the_threshold_passes() -> None:
    base, candidate = [0.0] * 80 + [1.0] * 20, [0.0] * 70 + [1.0] * 30
    assert Scores(base, candidate).lift < 0.1  # 0.3 - 0.2 in binary.
    assert _judge(Scores(base, candidate), min_lift=0.1).status is GateStatus.PASSED
    champion = [0.0] * 68 + [1.0] * 32
    assert _judge(Scores(base, candidate, champion), max_regression=0.02).status is GateStatus.PASSED
    assert _failed(_judge(Scores(base, candidate, champion), max_regression=0.019)) == ["no_regression"]
